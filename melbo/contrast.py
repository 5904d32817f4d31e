"""Vectors from prompts that differ: ActAdd and CAA, the supervised baselines (METHOD §7)."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .causal_map import CausalMap
from .errors import MelboError
from .features import FeatureSet
from .fit import fit
from .methods import Given
from .model import LanguageModel
from .prompts import Prompts
from .sara import activations
from .steer import Change, Edit, Tokens


@dataclass(frozen=True)
class AddPrompt(Edit):
    """ActAdd: h ← h + coefficient·(h₊ − h₋) at the first tokens of a prompt, the two prompts aligned at the front (Turner et al. 2023).

    Attributes:
        layer: Block whose input is changed (``hidden_states`` index, negative from the end).
        vectors: What is added to token 0, 1, …, ``[T, d]``; see `actadd`.
    """

    layer: int
    vectors: Tensor

    def check(self, lm: LanguageModel) -> None:
        """See `Edit.check`; also the vectors' shape."""
        super().check(lm)
        if self.vectors.ndim != 2 or self.vectors.shape[1] != lm.width:
            raise MelboError(f"got vectors of shape {tuple(self.vectors.shape)}, expected [tokens, {lm.width}]")

    def begin(self) -> Change:
        """Nothing is remembered from pass to pass."""
        return self._change

    def _change(self, hidden: Tensor, tokens: Tokens) -> Tensor | None:
        index = tokens.index.to(hidden.device)  # [rows or 1, T]
        inside = (index >= 0) & (index < len(self.vectors))
        if not inside.any():
            return None
        vectors = self.vectors.to(hidden.device, torch.promote_types(hidden.dtype, torch.float32))
        return (hidden + vectors[index.clamp(0, len(vectors) - 1)] * inside[:, :, None]).to(hidden.dtype)


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
