import pytest
import torch
from toys import directions

from melbo.explorer.directions import alike, cluster_numbers, nearest, places


def planted():
    """Twenty directions, with a near copy of 3 at 8, and one opposite to it at 11."""
    V = directions(20, 16)
    V[8] = torch.nn.functional.normalize(V[3] + 0.1 * V[8], dim=-1)
    V[11] = -torch.nn.functional.normalize(V[3] + 0.1 * V[11], dim=-1)
    return V


def test_similar_and_opposite_directions():
    V = planted()
    cosines = [float(V[3] @ V[i]) for i in range(20)]
    similar, opposite = alike(V, 3, 4)
    assert (similar[0][0], opposite[0][0]) == (8, 11)
    others = [i for i in range(20) if i != 3]
    expected = sorted(others, key=lambda i: -cosines[i])
    assert [i for i, _ in similar] == expected[:4]
    assert [i for i, _ in opposite] == expected[:-5:-1]
    for i, cosine in similar + opposite:
        assert cosine == pytest.approx(cosines[i])


def test_a_similar_one_is_not_opposite_as_well():
    similar, opposite = alike(torch.eye(3)[:, :2] + 1, 0, 9)
    assert len(similar) == 2
    assert opposite == []


def test_the_nearest_of_another_set():
    V = planted()
    best, cosine = nearest(2 * V[3], V[4:])
    assert best == 4
    assert cosine == pytest.approx(float(V[3] @ V[8]))


def test_clusters_are_numbered_and_loners_are_in_none():
    numbers = cluster_numbers(planted(), 0.9)
    assert numbers[3] == numbers[8] == 0
    assert [n for i, n in enumerate(numbers) if i not in (3, 8)] == [None] * 18


def test_neighbours_are_near_each_other_on_the_map():
    flat = torch.tensor(places(planted()))
    distances = (flat - flat[3]).norm(dim=-1)
    assert distances.argsort()[1] == 8


def test_the_map_is_the_same_each_time():
    assert places(planted()) == places(planted())


@pytest.mark.parametrize("num", [1, 2, 3, 4, 5, 6])
def test_few_directions_have_places_of_their_own(num):
    flat = places(directions(num, 8))
    assert len(set(flat)) == len(flat) == num
    assert torch.tensor(flat).isfinite().all()


def test_equal_directions_have_places():
    assert torch.tensor(places(torch.ones(7, 4))).isfinite().all()
