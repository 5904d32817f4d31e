"""Each check sees a model, or a library, that does the wrong thing."""

from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import nn

import melbo
from melbo import FeatureSet, MelboError
from melbo.models import edits
from melbo.models.edits import Add
from research.compatibility import running, weights
from research.compatibility.bench import Bench, Wrong
from research.compatibility.measure import CHECKS, measure
from research.compatibility.models import Subject, subjects
from research.compatibility.rows import PASS, WRONG


@pytest.fixture
def bench(tmp_path):
    subject = subjects()["llama"]
    return Bench(subject, subject.make(tmp_path), tmp_path)


def on_input(bench, change):
    """Change what enters a block of the model from now on."""
    bench.lm.blocks[2].register_forward_pre_hook(
        lambda block, args, kwargs: ((change(args[0]), *args[1:]), kwargs), with_kwargs=True
    )


def wrong_map(bench, monkeypatch):
    real = melbo.CausalMap.value_and_vjp

    def value_and_vjp(self, *args):
        value, gradient = real(self, *args)
        return value, 1.001 * gradient

    monkeypatch.setattr(melbo.CausalMap, "value_and_vjp", value_and_vjp)


def looks_ahead(bench, monkeypatch):
    on_input(bench, lambda h: h + 0.01 * h.mean(1, keepdim=True))


def mixes_rows(bench, monkeypatch):
    on_input(bench, lambda h: h + 0.01 * torch.arange(len(h))[:, None, None])


def steers_the_first(bench, monkeypatch):
    real = edits.steered_tokens
    monkeypatch.setattr(edits, "steered_tokens", lambda index, skip, last: real(index, False, last))


def forgets(bench, monkeypatch):
    on_input(bench, lambda h: 1.5 * h if h.shape[1] == 1 else h)


def swaps_rows(bench, monkeypatch):
    monkeypatch.setattr(
        Add, "rows", lambda self, which: Add(1, self.vectors.flip(0)[which], self.where)
    )


def ablates_one(bench, monkeypatch):
    real = melbo.ablate
    monkeypatch.setattr(melbo, "ablate", lambda lm, V: real(lm, V[:1]))


def merges_half(bench, monkeypatch):
    real = melbo.AdapterSet.merge
    monkeypatch.setattr(melbo.AdapterSet, "merge", lambda self, lm: real(self, lm, 0.5))


def exports_half(bench, monkeypatch):
    real = melbo.AdapterSet.export_peft
    monkeypatch.setattr(
        melbo.AdapterSet, "export_peft", lambda self, lm, folder: real(self, lm, folder, 0.5)
    )


def loads_the_opposite(bench, monkeypatch):
    real = FeatureSet.load.__func__

    def load(cls, folder, lm=None):
        found = real(cls, folder, lm)
        return found.replaced(-found.V, found.U, found.alpha)

    monkeypatch.setattr(FeatureSet, "load", classmethod(load))


SPOILED = {
    "map": (wrong_map, "the gradient of Δ: off by"),
    "causal": (looks_ahead, "states of earlier tokens: off by"),
    "equal rows": (mixes_rows, "states of rows: off by"),
    "where, skip_first": (steers_the_first, "logits, where=all, skip_first=True: off by"),
    "cached replies": (forgets, "logits of cached tokens: off by|replies: "),
    "padded batch": (swaps_rows, "reply 0 of a batch, where=prompt"),
    "ablate": (ablates_one, "left along the directions: off by"),
    "merge": (merges_half, "the stream: off by"),
    "export": (exports_half, "logits under peft: off by"),
    "save, load": (loads_the_opposite, "logits under loaded features: off by"),
}


@pytest.mark.parametrize("name", CHECKS)
def test_a_check_sees_what_is_wrong(name, bench, monkeypatch):
    spoil, says = SPOILED[name]
    spoil(bench, monkeypatch)
    with pytest.raises(Wrong, match=says):
        CHECKS[name](bench)


def test_a_direction_that_does_nothing_is_no_pass(bench, monkeypatch):
    monkeypatch.setattr(running, "SCALE", 1e-12)
    with pytest.raises(Wrong, match="where=all, skip_first=True changes nothing"):
        running.steered_tokens(bench)
    monkeypatch.setattr(weights.melbo, "ablate", contextmanager(lambda lm, V: (yield)))
    with pytest.raises(Wrong, match="ablation changes nothing"):
        weights.ablated(bench)


def test_a_model_that_changes_afterwards_is_no_pass(bench, monkeypatch):
    real = melbo.ablate

    @contextmanager
    def ablate(lm, V):
        with real(lm, V):
            yield
        lm.blocks[0].mlp.down_proj.weight += 1e-3

    monkeypatch.setattr(melbo, "ablate", ablate)
    with pytest.raises(Wrong, match="the same logits afterwards: False, not True"):
        weights.ablated(bench)


def outcomes(make):
    row = measure(Subject("a model", "a kind", make, nn.Module))
    [outcome] = set(row["checks"].values())
    return outcome


def refuses(says):
    def make(folder):
        raise MelboError(says.format(folder=folder))

    return make


def test_a_refusal_is_one_line_without_figures_and_folders():
    says = "{folder}/here is off by 1.5e-03 (weights 0123abcd): load 4 others"
    assert outcomes(refuses(says)) == "refused: … is off by … (weights …): load 4 others"
    assert outcomes(refuses("one\ntwo")) == f"{WRONG}a refusal of several lines: 'one\\ntwo'"


def test_any_other_error_is_wrong():
    def make(folder: Path):
        raise KeyError("weight")

    assert outcomes(make) == f"{WRONG}KeyError: 'weight'"


def test_a_clean_model_passes_all():
    assert set(measure(subjects()["llama"])["checks"].values()) == {PASS}
