"""Checks of a model's weights: taken out of, added to, exported, saved and loaded again."""

from pathlib import Path
from typing import Any

import peft
import torch
from torch import Tensor, nn

import melbo
from melbo.models.weights.low_rank import part_widths
from research.compatibility.bench import PROMPTS, SCALE, SOURCE, Bench
from research.compatibility.plain import logits, stream
from research.tiny.build import tiny_tokenizer

_IDS = torch.tensor([PROMPTS[0]])
_BAND = (0, 2)


@torch.no_grad()
def ablated(bench: Bench) -> None:
    """No block writes along ablated directions; afterwards all is as it was."""
    lm, V = bench.lm, bench.directions(2)
    before, plain = logits(lm, _IDS), stream(lm, _IDS).diff(dim=0) @ V.T
    with melbo.ablate(lm, SCALE * V):
        left = stream(lm, _IDS).diff(dim=0) @ V.T
        bench.differ(logits(lm, _IDS), before, "ablation")
    # the stream, and so what is left of a difference, is rounded
    bench.same(plain + left, plain, "what blocks write, with what is left along the directions")
    bench.equal(torch.equal(logits(lm, _IDS), before), True, "the same logits afterwards")


@torch.no_grad()
def merged(bench: Bench) -> None:
    """An adapter merged into the weights adds b(aᵀx) to what its matrices write."""
    lm, adapters = bench.lm, _adapters(bench)
    before = logits(lm, _IDS)
    truth = _edited_by_hooks(bench, adapters)
    with adapters.merge(lm):
        bench.same(stream(lm, _IDS), truth, "the stream")
        bench.differ(logits(lm, _IDS), before, "merging")
    bench.equal(torch.equal(logits(lm, _IDS), before), True, "the same logits afterwards")
    with melbo.steer(lm, adapters):
        bench.same(stream(lm, _IDS), truth, "the stream steered, not merged")


@torch.no_grad()
def exported(bench: Bench) -> None:
    """An adapter written as a LoRA gives, under peft, the logits of the merged weights."""
    lm, adapters = bench.lm, _adapters(bench)
    before = logits(lm, _IDS)
    with melbo.steer(lm, adapters):
        truth = logits(lm, _IDS)
    adapters.export_peft(lm, bench.folder / "lora")
    model: Any = bench.subject.bare()
    wrapped: Any = peft.PeftModel.from_pretrained(model, str(bench.folder / "lora")).eval()
    found = wrapped(input_ids=_IDS, use_cache=False).logits
    bench.same(found, truth, "logits under peft")
    bench.differ(found, before, "the LoRA")


def _adapters(bench: Bench) -> melbo.AdapterSet:
    """A random adapter of the first two blocks."""
    lm = bench.lm
    amap = melbo.AdapterMap(lm, bench.prompts, _BAND, lm.depth, target_tokens=2)
    random = melbo.Random(num_factors=1, scale=3.0)
    features = melbo.fit(amap, random, progress=False).features
    assert isinstance(features, melbo.AdapterSet)
    # these have the same norm at every site
    return features.random(1, torch.Generator().manual_seed(0))


def _edited_by_hooks(bench: Bench, adapters: melbo.AdapterSet) -> Tensor:
    """The stream with b(aᵀx) added by a hook on each matrix, of norm R at every site."""
    parts = torch.split(adapters.V[0], list(part_widths(adapters.sites)))
    handles = []
    for site, a, b in zip(adapters.sites, parts[::2], parts[1::2], strict=True):
        a, b = a / a.norm(), adapters.scale * b / b.norm()

        def add(
            module: nn.Module, args: tuple[Any, ...], out: Tensor, a: Tensor = a, b: Tensor = b
        ) -> Tensor:
            added: Tensor = (args[0] @ a)[..., None] * b
            return out + added

        handles.append(bench.lm.model.get_submodule(site.name).register_forward_hook(add))
    try:
        return stream(bench.lm, _IDS)
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def saved(bench: Bench) -> None:
    """Features saved and loaded again steer alike; so does a saved model, known by its digest."""
    lm = bench.lm
    cmap = melbo.CausalMap(lm, bench.prompts, SOURCE, lm.depth, target_tokens=2)
    random = melbo.Random(num_factors=1, scale=SCALE)
    features = melbo.fit(cmap, random, progress=False).features
    assert isinstance(features, melbo.FeatureSet)
    features.save(bench.folder / "run")
    truth = _steered(lm, features)
    bench.differ(truth, logits(lm, _IDS), "steering")
    here = melbo.FeatureSet.load(bench.folder / "run", lm)
    bench.same(_steered(lm, here), truth, "logits under loaded features")
    again = _loaded_again(bench)
    there = melbo.FeatureSet.load(bench.folder / "run", again)
    bench.equal(again.fingerprint, lm.fingerprint, "the digest of the weights")
    bench.same(_steered(again, there), truth, "logits of the loaded model")


def _loaded_again(bench: Bench) -> melbo.LanguageModel:
    """The model, saved as its library does and loaded as a user does."""
    lm, folder = bench.lm, bench.folder / "model"
    if bench.subject.base is not None:
        _checkpoint(bench.subject.base(), bench.folder / "base")
        for config in lm.model.peft_config.values():
            config.base_model_name_or_path = str(bench.folder / "base")
    _checkpoint(lm.model, folder)
    # float64 runs no experts but those of transformers' plainest code, which is chosen afterwards
    again = melbo.load(str(folder), dtype="float32", device="cpu")
    if hasattr(again.model, "set_experts_implementation"):
        again.model.set_experts_implementation("eager")
    again.model.to(bench.subject.dtype)
    return again


def _checkpoint(model: Any, folder: Path) -> None:
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)


def _steered(lm: melbo.LanguageModel, features: melbo.FeatureSet) -> Tensor:
    with melbo.steer(lm, features):
        return logits(lm, _IDS)
