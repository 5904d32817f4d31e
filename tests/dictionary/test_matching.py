"""Directions found in a dictionary, beside nulls."""

import pytest
import torch

from melbo import MelboError
from melbo.dictionary import best_matches, orthogonality_penalty, welch_floor
from melbo.dictionary.neighbours import Neighbours
from melbo.maths.linalg import random_rows, unit


def rows(m, d, seed):
    return random_rows(m, d, torch.Generator().manual_seed(seed))


def test_planted_directions_are_found_and_others_are_as_chance_has_it():
    W = rows(300, 32, 0)
    found = best_matches(torch.cat([unit(W[[5, 9]] + 0.05), -W[[7]], rows(200, 32, 1)]), W)
    assert found.latent[:3].tolist() == [5, 9, 7]
    assert (found.cosine[:3] > 0.9).all()
    told = found.describe()
    for values in told["nulls"].values():
        assert values["mean"] == pytest.approx(found.cosine[3:].mean().item(), abs=0.02)
        assert values["above"] == pytest.approx(0.05, abs=0.06)


def test_the_covariance_null_explains_rows_that_lie_where_the_dictionary_lies():
    # a dictionary in 4 of 32 dimensions, and directions there that are none of its own
    W, V = (torch.nn.functional.pad(rows(m, 4, seed), (0, 28)) for m, seed in ((60, 0), (100, 1)))
    told = best_matches(V, W).describe()["nulls"]
    assert told["covariance"]["above"] < 0.15
    assert told["rotated"]["above"] == 1.0


def test_the_nulls_are_drawn_anew_by_the_seed():
    W, V = rows(50, 8, 0), rows(5, 8, 1)
    first, same, other = (best_matches(V, W, 19, seed).nulls["rotated"] for seed in (0, 0, 1))
    assert first.equal(same)
    assert not first.equal(other)
    assert first.shape == (19, 5)


def test_other_widths_are_refused():
    with pytest.raises(MelboError, match="widths 8 and 9"):
        best_matches(rows(5, 8, 0), rows(20, 9, 0))
    with pytest.raises(MelboError, match="expected 19 or more"):
        best_matches(rows(5, 8, 0), rows(20, 8, 0), draws=18)


def test_geometry_tells_crowded_directions_from_random_ones():
    W = rows(200, 16, 0)
    W[:40] = unit(W[0] + 0.1 * W[:40])
    found = Neighbours.of(W)
    told = found.describe()
    assert told["cosines"]["directions"]["1"] > told["cosines"]["random"]["1"]
    assert set(told["cosines"]["random"]) == {"1", "10", "100"}
    assert told["penalty"] == pytest.approx(orthogonality_penalty(W).item(), rel=1e-4)
    assert told["floor"] == welch_floor(200, 16) < told["penalty"]
    same = Neighbours.of(rows(200, 16, 5)).describe()
    assert same["cosines"]["directions"]["1"] == pytest.approx(
        same["cosines"]["random"]["1"], abs=0.02
    )
