"""Candidates from a base model: how the weights and the activations of the tuned one differ."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from melbo.discovery.steered import CALIBRATED, SLICES, STRENGTHS, Steered
from melbo.errors import MelboError
from melbo.features.directions import FeatureSet
from melbo.features.steerable import Mixed
from melbo.maps.calibrate import calibrate
from melbo.maps.residual import CausalMap
from melbo.maths.linalg import orthogonalise, random_rows, top_singular, unit
from melbo.models.language_model import LanguageModel
from melbo.models.placement import layers_at
from melbo.models.text.prompts import Prompts
from melbo.models.weights.output_matrices import OutputMatrix, output_matrices
from melbo.models.weights.storage import read, require_plain
from melbo.progress import track

_PROMPTS = 8  # prompts whose streams are compared, and by which norms are measured
_SLIGHT = 1e-6  # share of a matrix's norm below which a difference counts as rounding
_REAL = 1e-3  # share of the largest singular value below which one counts as rounding


@dataclass(frozen=True)
class Push:
    """A direction at a layer.

    Attributes:
        layer: Layer that it is added at.
        v: The direction ``[d]``, of unit norm.
        strength: Multiple of R at that layer (see `as_candidates`).
        about: Account of where it is from, JSON-able.
    """

    layer: int
    v: Tensor
    strength: float
    about: Mapping[str, Any]


def require_alike(lm: LanguageModel, base: LanguageModel) -> None:
    """Refuse a base model that another cannot have been tuned from.

    Args:
        lm: The tuned model.
        base: The base model.

    Raises:
        MelboError: Architecture, width, depth or tokenizer differ; names all that do.
    """
    pairs = {
        "architecture": (type(lm.model).__name__, type(base.model).__name__),
        "width": (lm.width, base.width),
        "blocks": (lm.depth, base.depth),
    }
    differ = [f"{name} {one} and {two}" for name, (one, two) in pairs.items() if one != two]
    if lm.tokenizer.get_vocab() != base.tokenizer.get_vocab():
        sizes = f"{len(lm.tokenizer)} and {len(base.tokenizer)} tokens"
        differ.append(f"tokenizer ({sizes})")
    if differ:
        raise MelboError(
            f"{base.name} cannot be the base of {lm.name} ({'; '.join(differ)}): "
            "give the model that it was tuned from"
        )


@dataclass(frozen=True)
class WeightDifference:
    """Elicitor: leading left singular vectors of W_tuned − W_base, both signs.

    W are the matrices that write to the residual stream. A singular vector steers at the layer that
    its matrix writes to; those of the last block are left out, since no block reads there. They
    come in order of their singular values, over all matrices, each with its negative. Work on
    weights is not counted in tokens.

    Attributes:
        base: The base model.
        strengths: Multiples of R (see `as_candidates`); they take turns, vector after vector.
        per_matrix: Number of singular vectors of a matrix, at most.
    """

    base: LanguageModel
    strengths: tuple[float, ...] = STRENGTHS
    per_matrix: int = 8
    name: str = field(default="weight-difference", init=False)
    description: str = field(
        default="singular vectors of the difference of weights from the base", init=False
    )

    def candidates(
        self, lm: LanguageModel, prompts: Prompts, num: int, seed: int, progress: bool
    ) -> tuple[Steered, float]:
        """See `Elicitor.candidates`.

        Raises:
            MelboError: The base is of another kind, output matrices are not found or not plain, or
                none of them differ.
        """
        require_alike(lm, self.base)
        found: list[tuple[float, OutputMatrix, int, Tensor]] = []
        matrices = list(zip(output_matrices(lm), output_matrices(self.base), strict=True))
        with track(len(matrices), "weight differences", progress) as bar:
            for one, two in matrices:
                if one.block + 1 < lm.depth:
                    U, S = self._leading(lm, one, two)
                    found += [(s, one, i, U[i]) for i, s in enumerate(S)]
                bar.update()
        if not found:
            raise MelboError(
                f"{lm.name} and {self.base.name} have the same output matrices: "
                "nothing in them tells what was tuned"
            )
        found.sort(key=lambda each: -each[0])
        pushes = [
            Push(
                matrix.block + 1,
                u,
                self.strengths[k % len(self.strengths)],
                {"kind": self.name, "matrix": matrix.name, "order": i, "singular_value": size},
            )
            for k, (size, matrix, i, u) in enumerate(found)
        ]
        return as_candidates(lm, prompts, pushes, num, progress)

    def _leading(
        self, lm: LanguageModel, one: OutputMatrix, two: OutputMatrix
    ) -> tuple[Tensor, list[float]]:
        """Leading left singular vectors ``[k, d]`` and values of a difference; none without one.

        Raises:
            MelboError: A matrix is quantised.
        """
        ours, theirs = _columns(lm, one), _columns(self.base, two)
        difference = ours - theirs
        if not difference.norm() > _SLIGHT * theirs.norm():
            return difference[:0], []
        m = min(self.per_matrix, *difference.shape)
        start = orthogonalise(random_rows(m, lm.width, torch.Generator().manual_seed(0)), "qr")
        U, _, S, _ = top_singular(
            lambda rows: rows @ difference, lambda rows: rows @ difference.T, start, m, 1e-3, 10
        )
        # of a low-rank edit the others are rounding
        real = (S / S[0]) > _REAL
        return unit(U[real]), S[real].tolist()


@dataclass(frozen=True)
class ActivationDifference:
    """Elicitor: mean difference of the activations, tuned − base, layer by layer, both signs.

    The mean is over prompts: of the last tokens, where replies begin, and of all tokens but the
    first. Layers come from the middle of the model outwards.

    Attributes:
        base: The base model.
        strengths: Multiples of R (see `as_candidates`), one after the other.
    """

    base: LanguageModel
    strengths: tuple[float, ...] = (0.75, 1.5, 0.4)
    name: str = field(default="activation-difference", init=False)
    description: str = field(default="mean differences of activations from the base", init=False)

    def candidates(
        self, lm: LanguageModel, prompts: Prompts, num: int, seed: int, progress: bool
    ) -> tuple[Steered, float]:
        """See `Elicitor.candidates`.

        Raises:
            MelboError: The base is of another kind, or no activations differ.
        """
        require_alike(lm, self.base)
        some = prompts[:_PROMPTS]
        pairs = [(streams(lm, row), streams(self.base, row)) for row in some.tokens]
        means = {
            "last token": torch.stack([(a - b)[:, -1] for a, b in pairs]).mean(0),
            "all tokens": torch.cat([(a - b)[:, 1:] for a, b in pairs], 1).mean(1),
        }
        middle = sorted(range(lm.depth), key=lambda layer: abs(layer - lm.depth / 2))
        pushes = [
            Push(layer, unit(mean[layer]), strength, {"kind": self.name, "at": at})
            for strength in self.strengths
            for layer in middle
            for at, mean in means.items()
            if mean[layer].norm() > 0
        ]
        if not pushes:
            raise MelboError(
                f"{lm.name} and {self.base.name} have the same activations on these prompts: "
                "nothing in them tells what was tuned"
            )
        found, tokens = as_candidates(lm, prompts, pushes, num, progress)
        return found, tokens + 2 * sum(map(len, some.tokens))


def as_candidates(
    lm: LanguageModel,
    prompts: Prompts,
    pushes: Sequence[Push],
    num: int,
    progress: bool,
    signs: Sequence[int] = (1, -1),
) -> tuple[Steered, float]:
    """Directions at several layers as candidates, each with its negative unless told otherwise.

    R is calibrated once, on the first slice that directions are learnt on and the first prompt. At
    other layers it is the same share of the stream's median norm.

    Args:
        lm: The model.
        prompts: The prompts.
        pushes: The directions.
        num: Number of candidates, at most.
        progress: Whether to draw a bar.
        signs: Signs that each direction is tried with, one after the other.

    Returns:
        The candidates, and the tokens that the whole model would have read to calibrate them.
    """
    cmap = CausalMap(lm, prompts[0], *layers_at(lm.depth, SLICES[0]))
    scale = calibrate(cmap, num_directions=CALIBRATED, progress=progress).scale
    tokens = cmap.passes * len(prompts.tokens[0]) * (cmap.target - cmap.source) / lm.depth
    some = prompts[:_PROMPTS]
    norms = torch.cat([streams(lm, row)[:, 1:].norm(dim=-1) for row in some.tokens], 1)
    typical = norms.median(1).values
    tokens += sum(map(len, some.tokens))
    both = [(push, sign) for push in pushes for sign in signs][:num]
    layers = sorted({push.layer for push, _ in both})
    rows, sets = torch.zeros(len(both), 2, dtype=torch.long), []
    scales = {i: scale * (typical[i] / typical[cmap.source]).item() for i in layers}
    for number, layer in enumerate(layers):
        of_layer = [k for k, (push, _) in enumerate(both) if push.layer == layer]
        rows[of_layer] = torch.tensor([[number, at] for at in range(len(of_layer))])
        V = torch.stack([sign * push.v for push, sign in (both[k] for k in of_layer)])
        sets.append(_at_layer(lm, V, scales[layer], layer))
    about = tuple(
        {**push.about, "layer": push.layer, "sign": sign, "scale": scales[push.layer]}
        for push, sign in both
    )
    return Steered(Mixed(sets, rows), tuple(push.strength for push, _ in both), about), tokens


def _at_layer(lm: LanguageModel, V: Tensor, scale: float, layer: int) -> FeatureSet:
    """Directions as features with nothing known of their effects: U is random, α is zero."""
    U = random_rows(len(V), lm.width, torch.Generator().manual_seed(0))
    meta = {"map": {"model": lm.describe()}}
    return FeatureSet(V, U, torch.zeros(len(V)), scale, layer, lm.depth, meta)


def _columns(lm: LanguageModel, matrix: OutputMatrix) -> Tensor:
    """Vectors that single inputs of an output matrix write to the stream ``[d, n]``, float32.

    Raises:
        MelboError: The matrix is quantised.
    """
    require_plain(matrix.module, matrix.weight, matrix.name)
    weight = read(lm.model, matrix.name).detach().float().cpu()
    columns = weight.movedim(matrix.axis, 0).flatten(1)
    if matrix.gain is not None:
        columns = columns * matrix.gain.float().cpu()[:, None]
    return columns - columns.mean(0) if matrix.centred else columns


def streams(lm: LanguageModel, tokens: Sequence[int]) -> Tensor:
    """Stream entering every block on a prompt ``[depth, T, d]``, float32.

    Args:
        lm: The model.
        tokens: Token ids of the prompt.
    """
    entering: list[Tensor] = []

    def note(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden: Tensor = args[0] if args else kwargs["hidden_states"]
        entering.append(hidden[0].float().cpu())

    handles = [b.register_forward_pre_hook(note, with_kwargs=True) for b in lm.blocks]
    try:
        with torch.no_grad():
            lm.model(input_ids=torch.tensor([tuple(tokens)], device=lm.device), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return torch.stack(entering)
