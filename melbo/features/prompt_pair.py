"""ActAdd and SARA: steering with a pair of prompts, supervised baselines (docs/method.md §7)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from melbo.errors import MelboError
from melbo.features.provenance import Provenance
from melbo.features.run_folder import read_run, write_run
from melbo.features.sara import Sara
from melbo.features.steerable import Steerable, check_strength
from melbo.models.edits import Change, Edit, EditSequence, InputEdit, Tokens, Where
from melbo.models.language_model import LanguageModel
from melbo.models.text.prompts import Prompts


@dataclass(frozen=True)
class AddPrompt(InputEdit):
    """ActAdd: h ← h + strength·(h₊ − h₋) at the first tokens of a prompt, aligned at the front.

    Source: Turner et al. (2023).

    Attributes:
        layer: Block whose input is changed (``hidden_states`` index, negative from the end).
        vectors: Differences that are added to tokens 0, 1, …, ``[T, d]``; see `actadd`.
        strength: Multiple of the vectors; one for all rows of a batch, or one for each ``[rows]``.
    """

    layer: int
    vectors: Tensor
    strength: float | Tensor = 1.0

    def check(self, lm: LanguageModel) -> None:
        """See `Edit.check`; also checks the shape of the vectors.

        Raises:
            MelboError: The vectors are not ``[tokens, width]``; and as `Edit.check`.
        """
        super().check(lm)
        if self.vectors.ndim != 2 or self.vectors.shape[1] != lm.width:
            raise MelboError(
                f"got vectors of shape {tuple(self.vectors.shape)}, expected [tokens, {lm.width}]"
            )

    def begin(self) -> Change:
        """See `InputEdit.begin`; nothing is remembered from pass to pass."""
        return self._change

    def rows(self, which: Tensor) -> "AddPrompt":
        """See `Edit.rows`."""
        if not isinstance(self.strength, Tensor):
            return self
        return replace(self, strength=self.strength[which])

    def _change(self, hidden: Tensor, tokens: Tokens) -> Tensor | None:
        index = tokens.index.to(hidden.device)  # [rows or 1, T]
        inside = (index >= 0) & (index < len(self.vectors))
        if not inside.any():
            return None
        vectors = self.vectors.to(hidden.device, torch.promote_types(hidden.dtype, torch.float32))
        strength = self.strength
        if isinstance(strength, Tensor):
            strength = strength.to(vectors)[:, None, None]
        at_index = vectors[index.clamp(0, len(vectors) - 1)]
        return (hidden + strength * at_index * inside[:, :, None]).to(hidden.dtype)


def actadd(
    lm: LanguageModel,
    plus: Sequence[int],
    minus: Sequence[int],
    layer: int,
    coefficient: float = 1.0,
) -> AddPrompt:
    """Make the ActAdd edit of a pair of prompts.

    The shorter prompt is padded at its end, with spaces if the tokenizer has them.

    Args:
        lm: The model.
        plus: Token ids of the prompt to move towards.
        minus: Token ids of the prompt to move away from.
        layer: Block whose input is changed.
        coefficient: Multiple of the difference that is added.

    Raises:
        MelboError: A prompt has no tokens, or no block reads the layer.
    """
    if not plus or not minus:
        raise MelboError("got a prompt without tokens: expected two prompts")
    length = max(len(plus), len(minus))
    padded = [(*tokens, *[_space(lm)] * (length - len(tokens))) for tokens in (plus, minus)]
    one, two = (lm.activations(tokens, layer) for tokens in padded)
    return AddPrompt(layer, coefficient * (one - two))


@dataclass(frozen=True)
class PromptPair(Steerable):
    """ActAdd or SARA with a pair of prompts, as a set of one feature.

    It steers and is saved like features that were found without labels.

    Attributes:
        method: ``"actadd"`` or ``"sara"``.
        plus: Prompt to move towards.
        minus: Prompt to move away from.
        layers: Blocks whose inputs are changed.
        coefficient: Coefficient at strength 1; see `actadd` and `melbo.Sara`.
        truncation: See `melbo.Sara`.
        edits: One edit for each layer, from the model's activations on the two prompts.
        meta: The model and the prompt to move towards, as a run folder keeps them.
    """

    method: str
    plus: Prompts = field(repr=False)
    minus: Prompts = field(repr=False)
    layers: tuple[int, ...]
    coefficient: float
    truncation: int | None
    edits: tuple[AddPrompt | Sara, ...] = field(repr=False)
    meta: Mapping[str, Any] = field(repr=False)
    kind: ClassVar[str] = "contrast"

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
    ) -> Self:
        """Read the two prompts with a model.

        Args:
            lm: The model.
            method: ``"actadd"`` or ``"sara"``.
            plus: Prompt to move towards.
            minus: Prompt to move away from.
            layers: Blocks whose inputs are changed.
            coefficient: Coefficient at strength 1.
            truncation: See `melbo.Sara`.

        Raises:
            MelboError: The method is neither, a side has more than one prompt, there is no layer, a
                layer comes twice or no block reads it, or the coefficient is not finite.
        """
        if method not in ("actadd", "sara"):
            raise MelboError(f"got the method {method!r}: expected 'actadd' or 'sara'")
        if len(plus) != 1 or len(minus) != 1:
            raise MelboError(
                f"got {len(plus)} prompts to move towards and {len(minus)} to move away from: "
                f"{method} takes one of each"
            )
        at = tuple(sorted(lm.layer(layer) for layer in layers))
        if not at or len(set(at)) < len(at):
            given = ", ".join(map(str, layers)) or "(none)"
            raise MelboError(f"got the layers {given}: expected one or more, each once")
        check_strength(coefficient)
        towards, away = plus.tokens[0], minus.tokens[0]

        def edit_at(layer: int) -> AddPrompt | Sara:
            if method == "actadd":
                return actadd(lm, towards, away, layer, coefficient)
            attract, repel = (lm.activations(tokens, layer) for tokens in (towards, away))
            return Sara(layer, attract, repel, coefficient, truncation)

        edits = tuple(edit_at(layer) for layer in at)
        meta = {"map": {"model": lm.describe(), "prompts": plus.describe()}}
        return cls(method, plus, minus, at, coefficient, truncation, edits, meta)

    def __len__(self) -> int:
        """Number of features: one."""
        return 1

    def take(self, rows: Tensor) -> "PromptPair":
        """See `Steerable.take`."""
        return self

    def edit(
        self,
        which: Tensor | None = None,
        strength: float | Tensor = 1.0,
        where: Where = "all",
    ) -> Edit:
        """See `Steerable.edit`.

        Raises:
            MelboError: ``where`` is not ``"all"``: the method itself says which tokens it changes.
        """
        self.check_edit(which, strength)
        if where != "all":
            raise MelboError(
                f"where is {where!r}: {self.method} says itself at which tokens it acts; "
                "leave it out"
            )
        if which is not None and not isinstance(strength, Tensor):
            strength = torch.full((len(which),), strength)

        def stronger(edit: AddPrompt | Sara) -> AddPrompt | Sara:
            if isinstance(edit, Sara):
                return replace(edit, coefficient=strength * self.coefficient)
            return replace(edit, strength=strength)

        return EditSequence(tuple(stronger(edit) for edit in self.edits))

    def sizes(self) -> list[str]:
        """Size of the change at each layer, in words."""
        if self.method == "sara":
            return [f"layer {layer}: coefficient {self.coefficient:g}" for layer in self.layers]
        norms = [e.vectors.norm(dim=-1) for e in self.edits if isinstance(e, AddPrompt)]
        return [
            f"layer {layer}: adds norms {n.min():.3g} to {n.max():.3g} at {len(n)} tokens"
            for layer, n in zip(self.layers, norms, strict=True)
        ]

    def save(self, folder: str | Path, force: bool = False) -> Path:
        """Write ``run.json``: the prompts and settings.

        Activations are not saved; loading computes them again.

        Args:
            folder: The run folder.
            force: Whether a run that is there already may be replaced.

        Raises:
            MelboError: The folder holds a run already and ``force`` is not set.
        """
        contrast = {
            "method": self.method,
            "layers": self.layers,
            "coefficient": self.coefficient,
            "truncation": self.truncation,
            "plus": self.plus.describe(),
            "minus": self.minus.describe(),
        }
        return write_run(
            Path(folder), {"kind": self.kind, "contrast": contrast, **self.meta}, {}, force
        )

    @classmethod
    def load(cls, folder: str | Path, lm: LanguageModel) -> Self:
        """Read a folder that `save` wrote.

        Args:
            folder: The run folder.
            lm: Model that it was made with.

        Raises:
            MelboError: The run is missing, truncated, of another kind or of another model.
        """
        run = read_run(folder, cls.kind)
        try:
            saved = dict(run["contrast"])
            plus, minus = (Prompts.from_description(saved.pop(side)) for side in ("plus", "minus"))
            Provenance.of(run).check_model(lm)
            return cls.of(lm, plus=plus, minus=minus, **saved)
        except (KeyError, TypeError) as err:
            raise MelboError(
                f"{Path(folder) / 'run.json'} lacks what `melbo contrast` writes ({err}): "
                "make it again"
            ) from err


def _space(lm: LanguageModel) -> int:
    """Token id of a space, or the padding id where the tokenizer has none."""
    ids = lm.tokenizer(" ", add_special_tokens=False)["input_ids"] if lm.tokenizer else []
    return int(ids[0]) if ids else lm.pad
