"""Vectors from prompts that differ: ActAdd and CAA, the supervised baselines (METHOD §7)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .bank import Bank, check_fitted_on, check_strength
from .causal_map import CausalMap
from .edit import Change, Edit, InputEdit, Several, Tokens, Where
from .errors import MelboError
from .features import FeatureSet, read_run, write_run
from .fit import fit
from .methods import Given
from .model import LanguageModel
from .prompts import Prompts
from .sara import Sara, activations


@dataclass(frozen=True)
class AddPrompt(InputEdit):
    """ActAdd: h ← h + coefficient·(h₊ − h₋) at the first tokens of a prompt, the two prompts aligned at the front (Turner et al. 2023).

    Attributes:
        layer: Block whose input is changed (``hidden_states`` index, negative from the end).
        vectors: What is added to token 0, 1, …, ``[T, d]``; see `actadd`.
        strength: Times the vectors; one for all rows of a batch, or one for each ``[rows]``.
    """

    layer: int
    vectors: Tensor
    strength: float | Tensor = 1.0

    def check(self, lm: LanguageModel) -> None:
        """See `Edit.check`; also the vectors' shape."""
        super().check(lm)
        if self.vectors.ndim != 2 or self.vectors.shape[1] != lm.width:
            raise MelboError(f"got vectors of shape {tuple(self.vectors.shape)}, expected [tokens, {lm.width}]")

    def begin(self) -> Change:
        """Nothing is remembered from pass to pass."""
        return self._change

    def rows(self, which: Tensor) -> "AddPrompt":
        """See `Edit.rows`."""
        return replace(self, strength=self.strength[which]) if isinstance(self.strength, Tensor) else self

    def _change(self, hidden: Tensor, tokens: Tokens) -> Tensor | None:
        index = tokens.index.to(hidden.device)  # [rows or 1, T]
        inside = (index >= 0) & (index < len(self.vectors))
        if not inside.any():
            return None
        vectors = self.vectors.to(hidden.device, torch.promote_types(hidden.dtype, torch.float32))
        strength = self.strength.to(vectors)[:, None, None] if isinstance(self.strength, Tensor) else self.strength
        return (hidden + strength * vectors[index.clamp(0, len(vectors) - 1)] * inside[:, :, None]).to(hidden.dtype)


def actadd(lm: LanguageModel, plus: Sequence[int], minus: Sequence[int], layer: int, coefficient: float = 1.0) -> AddPrompt:
    """The edit of a pair of prompts, as token ids; the shorter one is padded at its end, with spaces if its tokenizer has them.

    Raises:
        MelboError: A prompt without tokens, or a layer that no block reads.
    """
    if not plus or not minus:
        raise MelboError("got a prompt without tokens: expected two prompts")
    length = max(len(plus), len(minus))
    one, two = (activations(lm, (*tokens, *[_space(lm)] * (length - len(tokens))), layer) for tokens in (plus, minus))
    return AddPrompt(layer, coefficient * (one - two))


def caa(cmap: CausalMap, plus: Prompts, minus: Prompts, coefficient: float = 1.0) -> FeatureSet:
    """Contrastive activation addition: the mean over pairs of h₊ − h₋ at the last token, as a feature of the map (Rimsky et al. 2024).

    Args:
        cmap: Its source layer is where activations are taken and the vector is added; its prompts are where the effect is measured.
        plus: Prompts with the behaviour.
        minus: As many without it, pair by pair.
        coefficient: The scale R of the feature is this many times the norm of the mean difference.

    Raises:
        MelboError: Other numbers of prompts on the two sides, a coefficient that is not positive, or no difference.
    """
    if len(plus) != len(minus):
        raise MelboError(f"got {len(plus)} prompts with the behaviour and {len(minus)} without it: expected pairs")
    last = [torch.stack([activations(cmap.lm, tokens, cmap.source)[-1] for tokens in side.tokens]) for side in (plus, minus)]
    difference = (last[0] - last[1]).to(torch.float32).mean(0)
    norm = difference.norm().item()
    if not norm > 0 or not coefficient > 0:
        raise MelboError(f"the mean difference has norm {norm:g} and the coefficient is {coefficient}: expected more than 0 of each")
    return fit(cmap, Given(1, coefficient * norm, tuple(map(tuple, difference[None].tolist()))), progress=False).features


@dataclass(frozen=True)
class PromptPair(Bank):
    """ActAdd or SARA of a pair of prompts, as a set of one feature: it steers, and is saved, as what was found without labels.

    Attributes:
        method: ``"actadd"`` or ``"sara"``.
        plus: The prompt to move towards.
        minus: The prompt to move away from.
        layers: Blocks whose inputs are changed.
        coefficient: See `actadd` and `melbo.Sara`; strength 1 is this.
        truncation: See `melbo.Sara`.
        made: An edit for each layer, from the model's activations on the two prompts.
        meta: The model.
    """

    method: str
    plus: Prompts
    minus: Prompts
    layers: tuple[int, ...]
    coefficient: float
    truncation: int | None
    made: tuple[AddPrompt | Sara, ...]
    meta: Mapping[str, Any]

    @classmethod
    def of(
        cls,
        lm: LanguageModel,
        method: str,
        plus: Prompts,
        minus: Prompts,
        layers: Sequence[int],
        coefficient: float = 1.0,
        truncation: int | None = None,
    ) -> "PromptPair":
        """Read the two prompts.

        Raises:
            MelboError: Another method, more than a prompt a side, no layer, a layer twice or one that no block reads, or a coefficient that is not
                finite.
        """
        if method not in ("actadd", "sara"):
            raise MelboError(f"got the method {method!r}: expected 'actadd' or 'sara'")
        if len(plus) != 1 or len(minus) != 1:
            raise MelboError(f"got {len(plus)} prompts to move towards and {len(minus)} to move away from: {method} takes one of each")
        at = sorted(lm.layer(layer) for layer in layers)
        if not at or len(set(at)) < len(at):
            raise MelboError(f"got the layers {', '.join(map(str, layers)) or '(none)'}: expected one or more, each once")
        check_strength(coefficient)

        def make(layer: int) -> AddPrompt | Sara:
            if method == "actadd":
                return actadd(lm, plus.tokens[0], minus.tokens[0], layer, coefficient)
            return Sara(layer, activations(lm, plus.tokens[0], layer), activations(lm, minus.tokens[0], layer), coefficient, truncation)

        meta = {"map": {"model": lm.describe(), "prompts": plus.describe()}}
        return cls(method, plus, minus, tuple(at), coefficient, truncation, tuple(make(layer) for layer in at), meta)

    def __len__(self) -> int:
        """One."""
        return 1

    def take(self, rows: Tensor) -> "PromptPair":
        """See `Bank.take`."""
        return self

    def edit(self, which: Tensor | None = None, strength: float | Tensor = 1.0, where: Where = "all") -> Edit:
        """See `Bank.edit`; ``where`` other than ``"all"`` has no meaning here.

        Raises:
            MelboError: ``where`` is not ``"all"``.
        """
        self.check_edit(which, strength)
        if where != "all":
            raise MelboError(f"where is {where!r}: {self.method} says itself at which tokens it acts; leave it out")
        if which is not None and not isinstance(strength, Tensor):
            strength = torch.full((len(which),), strength)
        return Several(
            tuple(replace(e, coefficient=strength * self.coefficient) if isinstance(e, Sara) else replace(e, strength=strength) for e in self.made)
        )

    def sizes(self) -> list[str]:
        """How large the change is at each layer, in words."""
        if self.method == "sara":
            return [f"layer {layer}: coefficient {self.coefficient:g}" for layer in self.layers]
        norms = [e.vectors.norm(dim=-1) for e in self.made if isinstance(e, AddPrompt)]
        return [f"layer {layer}: adds norms {n.min():.3g} to {n.max():.3g} at {len(n)} tokens" for layer, n in zip(self.layers, norms, strict=True)]

    def save(self, folder: str | Path, force: bool = False) -> Path:
        """Write ``run.json``: the prompts and how they are used; activations are read again on loading.

        Raises:
            MelboError: The folder holds a run already and ``force`` is not set.
        """
        contrast = {name: getattr(self, name) for name in ("method", "layers", "coefficient", "truncation")}
        contrast |= {"plus": self.plus.describe(), "minus": self.minus.describe()}
        return write_run(Path(folder), {"kind": "contrast", "contrast": contrast, **self.meta}, {}, force)

    @classmethod
    def load(cls, folder: str | Path, lm: LanguageModel) -> "PromptPair":
        """Read a folder that `save` wrote.

        Raises:
            MelboError: Missing, truncated, of another kind or of another model.
        """
        run = read_run(folder, "contrast")
        try:
            saved = dict(run["contrast"])
            plus, minus = (Prompts.from_description(saved.pop(side)) for side in ("plus", "minus"))
            check_fitted_on(run, lm)
            return cls.of(lm, plus=plus, minus=minus, **saved)
        except (KeyError, TypeError) as err:
            raise MelboError(f"{Path(folder) / 'run.json'} lacks what `melbo contrast` writes ({err}): make it again") from err


def read_pairs(path: str | Path) -> tuple[list[str], list[str]]:
    """Texts with and without a behaviour from a file: a pair a line, a tab between.

    Raises:
        MelboError: The file cannot be read, holds no pairs, or a line does not hold two texts; names the line.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as err:
        raise MelboError(f"cannot read {path} ({getattr(err, 'strerror', None) or 'not UTF-8'}): expected a text file with a pair a line") from err
    pairs = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            parts = [part.strip() for part in line.split("\t")]
            if len(parts) != 2 or not all(parts):
                raise MelboError(f"line {number} of {path} holds {len([p for p in parts if p])} texts: expected two with a tab between")
            pairs.append(parts)
    if not pairs:
        raise MelboError(f"{path} holds no pairs: expected two texts a line, with a tab between")
    return [a for a, _ in pairs], [b for _, b in pairs]


def _space(lm: LanguageModel) -> int:
    ids = lm.tokenizer(" ", add_special_tokens=False)["input_ids"] if lm.tokenizer is not None else []
    return ids[0] if ids else lm.pad
