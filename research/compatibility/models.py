"""Models that the suite runs over, each with its kind."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers as tf

from melbo.models.language_model import LanguageModel
from research.tiny.adapted import ADAPTED, adapted
from research.tiny.architectures import FLOAT32_INSIDE, TINY
from research.tiny.build import SHAPE, VOCAB, WIDTH, Builder, build, make, tiny_tokenizer
from research.tiny.experts import EXPERTS
from research.tiny.offloaded import offloaded
from research.tiny.quantised import KINDS, quantised
from research.tiny.recurrent import RECURRENT
from research.tiny.vision import VISION

_MIXTURES = {"mixtral", "qwen3_moe", "olmoe", "gpt_oss", "granitemoe", "deepseek_v3"}
_STATEFUL = {"lfm2", "recurrent_gemma"}


@dataclass(frozen=True)
class Subject:
    """A model that the suite tries.

    Attributes:
        name: Its name, unlike all others.
        kind: Heading under which the page lists it.
        make: Builds it, the same weights each time, given a folder for files.
        bare: Builds what peft is handed to put an exported LoRA on: the model of transformers, all
            in memory.
        base: Builds the base of a model that peft has wrapped; None for any other.
        dtype: Precision of its weights.
    """

    name: str
    kind: str
    make: Callable[[Path], LanguageModel]
    bare: Builder
    base: Builder | None = None
    dtype: torch.dtype = torch.float64

    @property
    def tolerance(self) -> float:
        """Relative error that counts as rounding; norms and states are float32 in most models."""
        return 1e-5 if self.dtype is torch.float64 else 1e-4


def subjects() -> dict[str, Subject]:
    """All models, by name, in the order of the page."""
    found = [
        *(_plain(_kind(name), name, builder) for name, builder in sorted(TINY.items())),
        *(_plain(_kind(name), name, builder) for name, builder in EXPERTS.items()),
        *(_plain("state-space, recurrent", name, builder) for name, builder in RECURRENT.items()),
        *(_plain("vision and language", name, builder) for name, builder in VISION.items()),
        *map(_wrapped, ADAPTED),
        *map(_quantised, KINDS),
        *(_offloaded(*each) for each in _OFFLOADED),
        *(_plain("not causal decoders", name, builder) for name, builder in _OTHERS.items()),
    ]
    # kinds together, each in the order above
    order = list(dict.fromkeys(subject.kind for subject in found))
    found.sort(key=lambda subject: order.index(subject.kind))
    return {subject.name: subject for subject in found}


def _kind(name: str) -> str:
    if name in _MIXTURES or name in EXPERTS:
        return "mixtures of experts"
    return "state-space, recurrent" if name in _STATEFUL else "attention"


def _plain(kind: str, name: str, builder: Builder) -> Subject:
    """A model that is built in memory."""
    dtype = torch.float32 if name in FLOAT32_INSIDE else torch.float64
    return _in_memory(name, kind, lambda: builder().to(dtype), dtype=dtype)


def _wrapped(kind: str) -> Subject:
    """A model inside peft's wrapper."""
    base = ADAPTED[kind][0]
    name = f"{kind} ({base})"
    # in the precision that adapters are merged in on loading, which digests of weights go by
    made = partial(adapted, kind)
    return _in_memory(name, "wrapped by peft", made, TINY[base], torch.float32)


def _quantised(kind: str) -> Subject:
    """A model whose blocks hold stand-ins for quantised layers."""

    def bare() -> Any:
        return quantised(TINY["llama"]().float(), kind)

    return _in_memory(f"{kind.lower()} (llama)", "quantised (stand-ins)", bare, dtype=torch.float32)


def _in_memory(
    name: str,
    kind: str,
    bare: Builder,
    base: Builder | None = None,
    dtype: torch.dtype = torch.float64,
) -> Subject:
    def made(folder: Path) -> LanguageModel:
        return LanguageModel(bare(), tiny_tokenizer(), name="the model")

    return Subject(name, kind, made, bare, base, dtype)


_OFFLOADED = (
    ("llama", "cpu"),
    ("llama", "disk"),
    ("gpt2", "disk"),
    ("gemma3", "mixed"),
    ("mixtral", "disk"),
)


def _offloaded(name: str, how: str) -> Subject:
    """A model whose weights are elsewhere."""

    def made(folder: Path) -> LanguageModel:
        return offloaded(name, how, torch.float64, folder)

    return Subject(f"{how} ({name})", "offloaded", made, lambda: TINY[name]().double())


def _bert() -> Any:
    shape = {name: n for name, n in SHAPE.items() if name not in ("bos_token_id", "eos_token_id")}
    return make("BertConfig", shape)


def _t5() -> Any:
    sizes = {"d_model": WIDTH, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
    config: Any = tf.T5Config
    return build(config(vocab_size=VOCAB, **sizes), auto=tf.AutoModelForSeq2SeqLM)


_OTHERS: dict[str, Builder] = {"bert": _bert, "t5": _t5}
