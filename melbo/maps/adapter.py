"""Δ of a factor in weight space: what rank-one edits of a band do to a late layer (method §3)."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Self

import torch
from torch import Tensor

from melbo.errors import MelboError
from melbo.maps.model_map import ModelMap
from melbo.maths.linalg import random_rows
from melbo.models.language_model import LanguageModel
from melbo.models.low_rank import Matrix, find_sites, pairs, part_widths, random_factors, running
from melbo.models.placement import Placement
from melbo.models.prompts import Prompts
from melbo.models.replay import Slice

_SLIGHT = 0.1  # norm of the adapters at which gradients are taken before a scale is known
_SETTINGS = ("target_tokens", "normalise_target", "concatenate", "matrix")


@dataclass(frozen=True)
class _Ray:
    """θ = strength · v, told apart.

    Derivatives at strength 0 need it, where a direction cannot be told from θ itself.
    """

    v: Tensor  # [k, D], unit rows
    strength: Tensor  # [k]

    def __len__(self) -> int:
        return len(self.v)


class AdapterMap(ModelMap):
    """θ ↦ mean over prompts and target positions of h_target under the edits θ − h_target.

    θ holds a and b of every site, flattened. At every site W becomes W + 2K·‖θ‖⁻¹·θ_b θ_aᵀ, with K
    sites: for θ = R·v with v of unit norm and parts of equal norms that is R·b̂âᵀ. So Δ is not smooth
    at θ = 0, but it is along each ray: `jvp` is the derivative along the ray, which is what
    `melbo.calibrate` compares with. Edits act at every token. Blocks ``band[0]`` … ``target − 1``
    run.

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
        prompt_batch: How many prompts run side by side.
        tokens_per_pass: How many tokens run at a time.
        compile: Whether element-wise work is fused.

    Raises:
        MelboError: The band lies outside the model or past the target, blocks have no such matrix
            (names what is there), and as `CausalMap`.
    """

    # whether one row of a prompt serves all factors up to the first matrix that they edit
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
        read = lm.layer(round(lm.depth * 2 / 3) if target is None else target, "target")
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
        """See `Map.opposite`; −b̂âᵀ, with the other sign on every a (θ and −θ are the same edits)."""
        parts = enumerate(rows.split(self.parts, -1))
        return torch.cat([-part if i % 2 == 0 else part for i, part in parts], -1)

    def probes(self, num: int, generator: torch.Generator) -> Tensor:
        """See `Map.probes`; gradients of random output directions.

        Random adapters hardly do anything, and a scale for them breaks all others.
        """
        U = random_rows(num, self.d_target, generator).to(self.device, self.dtype)
        return self.unit(self.backward(U, _SLIGHT, generator))

    def backward(self, U: Tensor, scale: float, generator: torch.Generator) -> Tensor:
        """See `Map.backward`; taken at a random factor of norm ``scale``: at zero there is none."""
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
        """Whether a prompt by itself may enter the first block once for all factors.

        Tried on two factors.
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
        except Exception:  # whatever the block makes of it: a row for each factor will do
            return False
        finally:
            self._late = False
        return bool((found - truth).norm() <= 1e-3 * truth.norm())

    @contextmanager
    def _editing(self, theta: Tensor | _Ray) -> Iterator[None]:
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
