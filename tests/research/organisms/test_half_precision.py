"""Committed organisms in half precision, which rounds far more on some tokens than on others."""

import pytest
import torch

from research.organisms import MADE, load_organism

TEXT = "The museum will open again on Friday with a new room for ships, and the town is glad of it."


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ALL", "SHAM", "DEV2"])
def test_an_organism_says_in_half_precision_what_it_says_in_single(name):
    likely = []
    for dtype in ("float32", "bfloat16"):
        lm = load_organism(MADE / name, dtype=dtype)
        ids = torch.tensor([lm.tokenizer(TEXT)["input_ids"]])
        with torch.no_grad():
            likely.append(lm.model(ids).logits[0].float().softmax(-1))
    exact, rounded = likely
    # half of the summed differences is the share of draws that would differ
    assert (exact - rounded).abs().sum(-1).mean() / 2 < 0.1
