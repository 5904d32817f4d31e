"""Curves as pictures, however few their values are."""

import re

import pytest

from melbo.evaluation.curves import Curve, curves


@pytest.mark.parametrize("y", [[0.0], [5.0], [-3.0], [1e9], [1e-9], [0.0, 0.0], [1.0, 2.0]])
@pytest.mark.parametrize("num", [1, 2, 3])
@pytest.mark.parametrize("at", [None, 2.0])
def test_a_picture_is_drawn_without_a_warning(y, num, at):
    panels = [Curve("explained", y), Curve("change", y, 0.5, "stops here"), Curve("loss", y)]
    picture = curves("training", "sweep", range(1, len(y) + 1), panels[:num], at)
    assert picture.startswith("<svg")
    assert ("stops here" in picture) == (num > 1)


def test_the_line_to_compare_with_is_inside_its_panel():
    picture = curves("training", "sweep", [1], [Curve("change", [0.0], 0.5, "stops here")])
    height = float(re.search(r'viewBox="0 0 \S+ (\S+)"', picture)[1])
    lines = re.findall(r'd="M (\S+) (\S+) \nL (\S+) (\S+) \n"[^>]*stroke-dasharray', picture)
    assert len(lines) == 1
    assert 0.02 * height < float(lines[0][1]) < 0.9 * height
