"""Indices of features: what is taken, and what is refused with the index that was given."""

import pytest
import torch
from toys import directions

from melbo import FeatureSet, MelboError
from melbo.features.steerable import Mixed


@pytest.fixture(scope="module", params=["directions", "mixed"])
def four(request):
    V, U = directions(4, 6), directions(4, 6, 1)
    features = FeatureSet(V, U, torch.arange(4, dtype=torch.float64) + 1, 2.0, 1, 3, {})
    if request.param == "directions":
        return features
    return Mixed([features[[0, 1]], features[[2, 3]]])


def taken(features, which):
    """Rows of ``V`` that an index takes, as numbers of features."""
    found = features[which]
    every = [features[i].edit().vectors for i in range(4)]
    one_by_one = [found[i].edit().vectors for i in range(len(found))]
    return [next(i for i in range(4) if torch.equal(every[i], v)) for v in one_by_one]


@pytest.mark.parametrize(
    "which",
    [
        *range(-4, 4),
        [],
        [2, -1],
        (0, 0),
        torch.tensor([3, -4]),
        torch.tensor(2),
        slice(1, None),
        slice(None, None, -1),
        slice(-2, 0, -1),
        slice(9, 12),
    ],
    ids=str,
)
def test_indices_take_what_a_list_would_give(four, which):
    listed = list(range(4))
    if isinstance(which, slice):
        expected = listed[which]
    else:
        expected = [listed[i] for i in torch.as_tensor(which).reshape(-1).int().tolist()]
    assert taken(four, which) == expected


@pytest.mark.parametrize("mask", [[True, False, False, True], [False] * 4, [True] * 4])
def test_masks_take_where_they_are_true(four, mask):
    expected = [i for i in range(4) if mask[i]]
    assert taken(four, mask) == expected == taken(four, torch.tensor(mask))


@pytest.mark.parametrize("index", [-6, -5, 4, 100, [0, -5], torch.tensor([1, 7])], ids=str)
def test_an_index_out_of_range_is_named_as_it_was_given(four, index):
    wrong = next(i for i in torch.as_tensor(index).reshape(-1).tolist() if not -4 <= i < 4)
    with pytest.raises(MelboError, match=f"got feature {wrong}, there are 4: expected 0 to 3"):
        four[index]


@pytest.mark.parametrize(
    "index", [1.0, [0, 1.5], 1j, "1", None, [[0, 1]], torch.zeros(2), {0: 1}], ids=str
)
def test_what_is_no_index_is_refused(four, index):
    with pytest.raises(MelboError, match="expected an integer, several in a list, a slice"):
        four[index]


@pytest.mark.parametrize(
    "mask", [[True], [True] * 3, [True] * 5, True, False, [[True] * 4]], ids=str
)
def test_a_mask_of_another_length_is_refused(four, mask):
    with pytest.raises(MelboError, match="got a mask of shape .* each of 4 features"):
        four[mask]
