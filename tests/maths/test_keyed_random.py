"""Random numbers by key and place."""

import torch

from melbo.maths.keyed_random import gaussian, key_of, uniform


def test_numbers_are_those_of_their_key_and_place_alone():
    first = [uniform(key_of(3, "a"), place) for place in range(50)]
    again = [uniform(key_of(3, "a"), place) for place in reversed(range(50))]
    assert first == again[::-1]
    assert len(set(first)) == 50
    assert not set(first) & {uniform(key_of(4, "a"), place) for place in range(50)}


def test_keys_tell_values_apart():
    keys = {key_of(0, 1), key_of(1, 0), key_of(0, "1"), key_of(0), key_of(0, (1,)), key_of("0, 1")}
    assert len(keys) == 6
    assert all(0 <= key < 2**63 for key in keys)
    assert key_of(1, (2, 3)) == 2033469833185751747


def test_uniform_numbers_fill_the_unit_interval():
    numbers = torch.tensor([uniform(key_of(9), place) for place in range(4000)])
    assert 0 <= numbers.min() < 0.01 < 0.99 < numbers.max() < 1
    assert abs(numbers.mean() - 0.5) < 0.02
    assert abs((numbers[1:] * numbers[:-1]).mean() - 0.25) < 0.02


def test_gaussian_numbers_have_mean_zero_variance_one_and_no_relation():
    rows = torch.stack([gaussian(key_of(seed), place, 256) for seed in (1, 2) for place in (0, 1)])
    assert rows.dtype == torch.float32
    assert abs(rows.mean()) < 0.1
    covariance = rows @ rows.T / 256
    assert (covariance - torch.eye(4)).abs().max() < 0.35
