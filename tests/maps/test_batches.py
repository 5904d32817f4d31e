"""CausalMap: prompts side by side, chunks of directions, and the memory that they take."""

import gc
from types import SimpleNamespace

import psutil
import pytest
import torch
from cases import tiny_model
from slow_maps import (
    assert_same,
    oracles,
    prompts_of,
)
from toys import directions

from melbo import CausalMap


@pytest.fixture(scope="module")
def lm():
    return tiny_model("llama", dtype=torch.float64)


@pytest.fixture(scope="module")
def cmap(lm):
    return CausalMap(lm, prompts_of(), 1, 3)


def free_memory(monkeypatch, available):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=available))


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("positions", ["all", "target"])
def test_what_a_pass_keeps_grows_with_its_rows(lm, positions, batch):
    cmap = CausalMap(lm, prompts_of(), 1, 3, positions=positions, prompt_batch=batch)
    for piece in cmap.pieces:
        one, two, five = (cmap._kept(piece, rows) for rows in (1, 2, 5))
        assert 0 < five - one == 4 * (two - one)


def test_measuring_memory_holds_none(lm):
    piece = (cmap := CausalMap(lm, prompts_of(), 1, 3)).pieces[0]

    def held():
        gc.collect()
        return sum(type(o) is torch.Tensor for o in gc.get_objects())

    before = held()
    cmap._kept(piece, 2)
    assert held() == before


def test_chunks_shrink_with_the_free_memory(lm, monkeypatch):
    usual = []
    for available in (10**12, 10**7, 10**6, 1):
        free_memory(monkeypatch, available)
        usual.append(CausalMap(lm, prompts_of(), 1, 3).tokens_per_pass)
    assert usual[0] == 1200
    assert 1200 > usual[1] > 5 * usual[2] > 0
    assert usual[3] == 1
    assert CausalMap(lm, prompts_of(), 1, 3, tokens_per_pass=99).tokens_per_pass == 99


@pytest.mark.parametrize("lengths", [(40, 5), (5, 40), (40, 40, 5, 6), (5, 6, 40, 40)])
@pytest.mark.parametrize("positions", ["all", "target"])
def test_no_pass_keeps_more_than_the_free_memory(lm, monkeypatch, positions, lengths):
    free_memory(monkeypatch, available := 4_000_000)
    texts = prompts_of([tuple(range(5, 5 + n)) for n in lengths])
    cmap = CausalMap(lm, texts, 1, 3, positions=positions, prompt_batch=len(lengths) // 2)
    for piece in cmap.pieces:
        rows = cmap.tokens_per_pass // piece.cost
        one, two = cmap._kept(piece, 1), cmap._kept(piece, 2)
        # half of it, give or take what differs between prompts
        assert rows * (two - one) <= available


@pytest.mark.parametrize(
    "settings",
    [{"prompt_batch": 2}, {"prompt_batch": 3}, {"tokens_per_pass": 1}, {"tokens_per_pass": 40}],
)
def test_invariant_to_prompt_batching_padding_and_chunks(lm, cmap, settings):
    other = CausalMap(lm, prompts_of(), 1, 3, **settings)
    V, U = directions(5, lm.width, 1), directions(5, lm.width, 2)
    assert torch.allclose(cmap.value(V), other.value(V), atol=1e-10)
    assert torch.allclose(cmap.jvp(V), other.jvp(V), atol=1e-10)
    assert torch.allclose(cmap.vjp(U), other.vjp(U), atol=1e-10)
    assert torch.allclose(cmap.hvp(U, V), other.hvp(U, V), atol=1e-10)
    assert torch.allclose(cmap.bilinear(V, V), other.bilinear(V, V), atol=1e-10)

    def unit(d, rows):
        return d / d.norm(dim=-1, keepdim=True)

    for ours, theirs in zip(cmap.value_and_vjp(V, unit), other.value_and_vjp(V, unit), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-10)


def test_prompts_go_by_length():
    lengths = (9, 4, 9, 5, 9, 30)
    some = prompts_of([tuple(range(5, 5 + n)) for n in lengths])
    assert some.by_length(1000, 0) == [[1], [3], [0, 2, 4], [5]]
    assert some.by_length(18, 0) == [[1], [3], [0, 2], [4], [5]]
    assert some.by_length(1000, 0.12) == [[1, 3], [0, 2, 4], [5]]  # one token of padding for nine
    assert some.by_length(1000, 10) == [[1, 3, 0, 2, 4, 5]]
    assert some.by_length(1, 10) == [[i] for i in (1, 3, 0, 2, 4, 5)]


@pytest.mark.parametrize("positions", ["all", "target"])
@pytest.mark.parametrize("side_by_side", [10, 40, 320])
@pytest.mark.parametrize("concatenate", [False, True])
def test_prompts_side_by_side_by_length_give_what_each_gives_alone(
    lm, positions, side_by_side, concatenate
):
    class Side(CausalMap):
        _side_by_side = side_by_side

    lengths = (9, 4, 9, 10, 9, 13)
    some = prompts_of([tuple(range(3 * i, 3 * i + n)) for i, n in enumerate(lengths)])
    settings = {"positions": positions, "concatenate": concatenate}
    together = Side(lm, some, 1, 3, **settings)
    alone = CausalMap(lm, some, 1, 3, prompt_batch=1, **settings)
    assert (len(together.pieces) < 6) == (side_by_side > 10)
    assert sorted(i for group in together.groups for i in group) == list(range(6))
    assert_same(oracles(together, "llama"), oracles(alone, "llama"), 1e-9)


def test_invariant_to_the_tokenizers_padding_side(lm, cmap):
    V = directions(2, lm.width)
    for side in ("left", "right"):
        lm.tokenizer.padding_side = side
        assert torch.allclose(
            CausalMap(lm, prompts_of(), 1, 3, prompt_batch=3).value(V), cmap.value(V), atol=1e-10
        )
