"""Δ of rank-one edits of the weights of a band of blocks, read late (docs/method.md §3)."""

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Self

import torch
from torch import Tensor

from melbo.errors import MelboError
from melbo.maps.model_map import ModelMap
from melbo.maths.linalg import random_rows
from melbo.models.language_model import LanguageModel
from melbo.models.placement import USUAL_SHARES, Placement
from melbo.models.replay import Slice
from melbo.models.text.prompts import Prompts
from melbo.models.weights.low_rank import (
    Matrix,
    find_sites,
    pairs,
    part_widths,
    random_factors,
    running,
)

_SLIGHT = 0.1  # norm of the adapters at which gradients are taken before a scale is known
_SETTINGS = ("target_tokens", "normalise_target", "concatenate", "matrix")


@dataclass(frozen=True)
class _Ray:
    """θ = strength · v, with the two kept apart.

    At strength 0, where derivatives are taken, θ alone would not tell its direction.
    """

    v: Tensor  # [k, D], unit rows
    strength: Tensor  # [k]

    def __len__(self) -> int:
        return len(self.v)


class AdapterMap(ModelMap):
    """θ ↦ mean over prompts and target positions of h_target under the edits θ − h_target.

    θ holds a and b of every site, flattened. At each of the K sites W becomes
    W + 2K·‖θ‖⁻¹·θ_b θ_aᵀ. For θ = R·v, with v of unit norm and its parts of equal norms, that is
    W + R·b̂âᵀ. Δ is smooth along each ray from θ = 0, but not at θ = 0 itself: `jvp` is the
    derivative along the ray, which `melbo.calibrate` compares with. Edits act at every token.
    Blocks ``band[0]`` … ``target − 1`` run.

    Args:
        lm: The model.
        prompts: Prompts that it reads.
        band: Blocks ``band[0]`` … ``band[1] − 1`` are edited; by default the five around a third of
            the depth.
        target: Layer that is read; by default at two thirds of the depth.
        matrix: ``"attention"`` edits its output matrix, ``"mlp"`` that of the MLP.
        target_tokens: See `CausalMap`, also for the arguments that follow.
        normalise_target: Whether to read h/‖h‖.
        concatenate: Whether prompts and tokens are stacked.
        prompt_batch: Number of prompts that run side by side.
        tokens_per_pass: Number of tokens that run at a time.
        compile: Whether element-wise work is fused.

    Raises:
        MelboError: The band lies outside the model or past the target, a block has no such matrix
            (names what is there), or `CausalMap` would refuse the settings.
    """

    # whether all factors share one row of a prompt up to the first matrix that they edit
    _late = False

    def __init__(
        self,
        lm: LanguageModel,
        prompts: Prompts,
        band: tuple[int, int] | None = None,
        target: int | None = None,
        *,
        matrix: Matrix = "attention",
        target_tokens: int = 3,
        normalise_target: bool = False,
        concatenate: bool = False,
        prompt_batch: int | None = None,
        tokens_per_pass: int | None = None,
        compile: bool | None = None,
    ) -> None:
        usual = round(lm.depth * USUAL_SHARES[1])
        read = lm.layer(usual if target is None else target, "target")
        self.band, self.matrix = band or usual_band(lm, read), matrix
        first, last = self.band
        if last > read:
            raise MelboError(
                f"the band is blocks {first} to {last - 1}, the target is layer {read}: "
                "expected the band before it"
            )
        self.sites = find_sites(lm, self.band, matrix)
        self.parts = part_widths(self.sites)
        super().__init__(
            lm,
            prompts,
            Placement(first, read, target_tokens),
            sum(self.parts),
            normalise_target=normalise_target,
            concatenate=concatenate,
            read="stream",
            prompt_batch=prompt_batch,
            tokens_per_pass=tokens_per_pass,
            compile=compile,
        )
        self._late = self._can_part_late()

    def describe(self) -> dict[str, Any]:
        """See `ModelMap.describe`."""
        return {
            **super().describe(),
            "band": list(self.band),
            "matrix": self.matrix,
            "sites": [asdict(site) for site in self.sites],
        }

    @classmethod
    def from_description(cls, lm: LanguageModel, saved: Mapping[str, Any]) -> Self:
        """See `ModelMap.from_description`."""
        settings = {name: saved[name] for name in _SETTINGS}
        prompts = Prompts.from_description(saved["prompts"])
        return cls(lm, prompts, tuple(saved["band"]), saved["target"], **settings)

    def opposite(self, rows: Tensor) -> Tensor:
        """See `Map.opposite`; every a changes sign, because θ and −θ are the same edits."""
        parts = enumerate(torch.split(rows, list(self.parts), -1))
        return torch.cat([-part if i % 2 == 0 else part for i, part in parts], -1)

    def probes(self, num: int, generator: torch.Generator) -> Tensor:
        """See `Map.probes`; gradients of random output directions.

        Random adapters do hardly anything; a scale that suits them breaks the model under others.
        """
        U = random_rows(num, self.d_target, generator).to(self.device, self.dtype)
        return self.unit(self.backward(U, _SLIGHT, generator))

    def backward(self, U: Tensor, scale: float, generator: torch.Generator) -> Tensor:
        """See `Map.backward`; taken at random factors of norm ``scale``: zero has no gradient."""
        V = random_factors(self.sites, len(U), generator).to(self.device, self.dtype)
        return self.value_and_vjp(scale * V, U)[1]

    def jvp(self, v: Tensor) -> Tensor:
        """See `Map.jvp`; the derivative along the ray of each row."""
        v = self._rows(v)
        self.passes += len(v)
        norm = v.norm(dim=-1)
        unit_v = v / norm.clamp_min(torch.finfo(v.dtype).tiny)[:, None]
        out = v.new_zeros(len(v), self.d_target)
        with self._forward_mode():
            for piece, rows in self.chunks(len(v)):
                at, fn = unit_v[rows], piece.fn
                zero, one = torch.zeros_like(norm[rows]), torch.ones_like(norm[rows])

                def ray(t: Tensor, at: Tensor = at, fn: Any = fn) -> Tensor:
                    response: Tensor = fn(_Ray(at, t))
                    return response

                along = torch.func.jvp(ray, (zero,), (one,))[1]
                out[rows, piece.columns] += norm[rows, None] * along
        return out

    def _entering(self, part: Slice, theta: Tensor) -> Tensor:
        if self._late and len(part.hidden) == 1:
            return part.hidden
        return part.hidden.repeat(len(theta), 1, 1)

    def _can_part_late(self) -> bool:
        """Tell whether a prompt on its own may enter the first block once for all factors.

        Two factors are tried both ways.
        """
        alone = [
            piece
            for piece, part in zip(self.pieces, self.slices, strict=True)
            if len(part.hidden) == 1
        ]
        if not alone:
            return False
        generator = torch.Generator().manual_seed(0)
        theta = _SLIGHT * random_factors(self.sites, 2, generator).to(self.device, self.dtype)
        try:
            with torch.no_grad():
                truth = alone[0].fn(theta)
                self._late = True
                found = alone[0].fn(theta)
        except Exception:
            # whatever the block makes of it: one row for each factor always works
            return False
        finally:
            self._late = False
        return bool((found - truth).norm() <= 1e-3 * truth.norm())

    @contextmanager
    def _editing(self, theta: Tensor | _Ray) -> Generator[None, None, None]:
        if isinstance(theta, _Ray):
            v, strength = theta.v, theta.strength
        else:
            tiny = torch.finfo(theta.dtype).tiny
            strength = theta.square().sum(-1).clamp_min(tiny).sqrt()
            v = theta / strength[:, None]
        with running(self.lm, self.sites, pairs(self.sites, v, strength)):
            yield


def usual_band(lm: LanguageModel, target: int) -> tuple[int, int]:
    """Five blocks around a third of the depth, fewer where the target leaves no room for them."""
    last = min(round(lm.depth / 3) + 3, target)
    return max(0, last - 5), last
