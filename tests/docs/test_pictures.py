"""Pictures of the method: drawn from what they show, and the committed ones up to date."""

import re

import pytest
import torch

from research.site.pictures import DARK, FOLDER, PICTURES, R, draw, planted


def test_the_map_of_the_pictures_has_its_peaks_at_the_planted_directions():
    cmap, V, _ = planted()
    turned = V + 0.2 * V.flip(-1) * torch.tensor([1.0, -1.0])
    turned = torch.nn.functional.normalize(turned, dim=-1)
    size, beside = (cmap.value(R * rows).norm(dim=-1) for rows in (V, turned))
    assert (size > beside).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", PICTURES)
def test_committed_pictures_are_the_drawn_ones(name):
    drawn = draw(name)
    committed = (FOLDER / f"{name}.svg").read_text(encoding="utf-8")
    # numbers may differ in their last places by the machine
    plain = [re.sub(r"-?\d+(\.\d+)?", "0", text) for text in (drawn, committed)]
    assert plain[0].count("<path") == plain[1].count("<path")
    assert plain[0].count("<use") == plain[1].count("<use")


@pytest.mark.parametrize("name", PICTURES)
def test_colours_have_dark_ones_in_their_places(name):
    text = (FOLDER / f"{name}.svg").read_text(encoding="utf-8")
    drawn = text.replace(re.search("<style>.*?</style>", text, re.DOTALL)[0], "")
    colours = set(re.findall(r"(?:fill|stroke): (#[0-9a-f]{6})", drawn))
    assert colours
    assert colours <= set(DARK)
