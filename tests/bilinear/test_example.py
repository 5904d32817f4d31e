"""The examples of docs/bilinear.md, run as they stand."""

import contextlib
import io
import re
from pathlib import Path

import pytest

import melbo

PAGE = Path(melbo.__file__).parents[1] / "docs" / "bilinear.md"
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


def printed(code):
    """Lines that an example prints."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(code, str(PAGE), "exec"), {})
    return out.getvalue().splitlines()


def test_the_example_with_planted_units():
    units, cosine = printed(EXAMPLES[0])
    assert units.startswith("hidden units with the largest shares: [")
    assert float(cosine.rpartition(" ")[2]) > 0.95


@pytest.mark.slow
def test_the_example_with_a_model():
    values, units = printed(EXAMPLES[1])
    assert values.startswith("largest singular values of C_s: [")
    assert units.startswith("hidden units with the largest shares: [")
