"""Δ of a factor in weight space: what rank-one edits of a band of blocks do to a late layer, averaged over prompts (METHOD §3)."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from .adapters import AdapterSet
from .causal_map import CausalMap
from .errors import MelboError
from .linalg import random_rows
from .model import LanguageModel
from .prompts import Prompts
from .rank_one import Matrix, find_sites, pairs, parts, random_factors, running
from .slice import Slice

_SLIGHT = 0.1  # norm of the adapters at which gradients are taken before a scale is known


@dataclass(frozen=True)
class _Ray:
    """θ = strength · v, told apart, for derivatives at strength 0, where a direction cannot be told from θ itself."""

    v: Tensor  # [k, D], unit rows
    strength: Tensor  # [k]

    def __len__(self) -> int:
        return len(self.v)


class AdapterMap(CausalMap):
    """θ ↦ mean over prompts and target positions of h_target under the edits θ − h_target; θ holds a and b of every site, flattened.

    At every site W becomes W + 2K·‖θ‖⁻¹·θ_b θ_aᵀ, with K sites: for θ = R·v with v of unit norm and parts of equal norms that is R·b̂âᵀ. So Δ is
    not smooth at θ = 0, but along each ray: `jvp` is the derivative along the ray, which is what `melbo.calibrate` compares with.
    Edits act at every token. Blocks ``band[0]`` … ``target − 1`` run.

    Args:
        lm: The model.
        prompts: What it reads.
        band: Blocks ``band[0]`` … ``band[1] − 1`` are edited; by default the five around a third of the depth.
        target: Layer that is read; by default at two thirds of the depth.
        matrix: ``"attention"``: its output matrix. ``"mlp"``: that of the MLP.
        target_tokens: See `CausalMap`, also for what follows.
        normalise_target: Read h/‖h‖.
        concatenate: Stack prompts and tokens.
        prompt_batch: Prompts side by side.
        tokens_per_pass: Tokens run at a time.
        compile: Fuse element-wise work.

    Raises:
        MelboError: A band outside the model or past the target, blocks without such a matrix (names what is there), and as `CausalMap`.
    """

    bank = AdapterSet
    _late = False  # whether one row of a prompt serves all factors up to the first matrix that they edit

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
        target = lm.layer(round(lm.depth * 2 / 3) if target is None else target, "target")
        self.band, self.matrix = band or usual_band(lm, target), matrix
        if self.band[1] > target:
            raise MelboError(f"the band is blocks {self.band[0]} to {self.band[1] - 1}, the target is layer {target}: expected the band before it")
        self.sites = find_sites(lm, self.band, matrix)
        self.parts = parts(self.sites)
        super().__init__(
            lm,
            prompts,
            self.band[0],
            target,
            target_tokens=target_tokens,
            normalise_target=normalise_target,
            concatenate=concatenate,
            prompt_batch=prompt_batch,
            tokens_per_pass=tokens_per_pass,
            compile=compile,
        )
        self._late = self._can_part_late()

    def describe(self) -> dict:
        """See `CausalMap.describe`."""
        return {
            **super().describe(),
            "kind": "AdapterMap",
            "band": list(self.band),
            "matrix": self.matrix,
            "sites": [asdict(site) for site in self.sites],
        }

    @classmethod
    def from_description(cls, lm: LanguageModel, saved: dict) -> "AdapterMap":
        """The map that wrote ``saved``, on the same model."""
        settings = {k: saved[k] for k in ("target_tokens", "normalise_target", "concatenate", "matrix")}
        return cls(lm, Prompts.from_description(saved["prompts"]), tuple(saved["band"]), saved["target"], **settings)

    def opposite(self, rows: Tensor) -> Tensor:
        """See `Map.opposite`: −b̂âᵀ, with the other sign on every a (θ and −θ are the same edits)."""
        return torch.cat([-part if i % 2 == 0 else part for i, part in enumerate(rows.split(self.parts, -1))], -1)

    def probes(self, num: int, generator: torch.Generator) -> Tensor:
        """See `Map.probes`: gradients of random output directions. Random adapters hardly do anything, and a scale for them breaks all others."""
        U = random_rows(num, self.d_target, generator).to(self.device, self.dtype)
        return self.unit(self.backward(U, _SLIGHT, generator))

    def backward(self, U: Tensor, scale: float, generator: torch.Generator) -> Tensor:
        """See `Map.backward`: the gradient at a random factor of norm ``scale``, because at zero there is none."""
        V = random_factors(self.sites, len(U), generator).to(self.device, self.dtype)
        return self.value_and_vjp(scale * V, U)[1]

    def jvp(self, v: Tensor) -> Tensor:
        """d/dt Δ(t·v) at t = 0 for unit rows, ``[k, D] → [k, d_target]``, exact (forward mode)."""
        v = self._rows(v)
        norm = v.norm(dim=-1)
        unit_v = v / norm.clamp_min(torch.finfo(v.dtype).tiny)[:, None]
        out = v.new_zeros(len(v), self.d_target)
        with self._forward_mode():
            for piece, rows in self.chunks(len(v)):
                zero, one = torch.zeros_like(norm[rows]), torch.ones_like(norm[rows])
                along = torch.func.jvp(lambda t, fn=piece.fn, at=unit_v[rows]: fn(_Ray(at, t)), (zero,), (one,))[1]
                out[rows, piece.columns] += norm[rows, None] * along
        return out

    def vjp(self, u: Tensor) -> Tensor:
        """Not there: Δ is not smooth at zero.

        Raises:
            MelboError: Always.
        """
        raise MelboError("a map of adapters has no Jacobian at zero, where a and b vanish together: use CPE, or a map of directions")

    def hvp(self, u: Tensor, v: Tensor) -> Tensor:
        """As `vjp`."""
        return self.vjp(u)

    def bilinear(self, v: Tensor, w: Tensor) -> Tensor:
        """As `vjp`."""
        return self.vjp(v)

    def square_hvp(self, v: Tensor) -> Tensor:
        """As `vjp`."""
        return self.vjp(v)

    def _theta_width(self, width: int) -> int:
        return sum(self.parts)

    def _steered(self, part: Slice, theta: Tensor) -> Tensor:
        return part.hidden if self._late and len(part.hidden) == 1 else part.hidden.repeat(len(theta), 1, 1)

    def _can_part_late(self) -> bool:
        """Whether a prompt by itself may enter the first block once for all factors: tried on two."""
        piece = next((piece for piece, part in zip(self.pieces, self.slices, strict=True) if len(part.hidden) == 1), None)
        if piece is None:
            return False
        theta = _SLIGHT * random_factors(self.sites, 2, torch.Generator().manual_seed(0)).to(self.device, self.dtype)
        try:
            with torch.no_grad():
                truth = piece.fn(theta)
                self._late = True
                found = piece.fn(theta)
        except Exception:  # whatever the block makes of it: a row for each factor will do
            return False
        finally:
            self._late = False
        return bool((found - truth).norm() <= 1e-3 * truth.norm())

    @contextmanager
    def _editing(self, theta: Tensor) -> Iterator[None]:
        if isinstance(theta, _Ray):
            v, strength = theta.v, theta.strength
        else:
            strength = theta.square().sum(-1).clamp_min(torch.finfo(theta.dtype).tiny).sqrt()
            v = theta / strength[:, None]
        with running(self.lm, self.sites, pairs(self.sites, v, strength)):
            yield


def usual_band(lm: LanguageModel, target: int) -> tuple[int, int]:
    """Five blocks around a third of the depth, fewer where there are not so many before the target."""
    last = min(round(lm.depth / 3) + 3, target)
    return max(0, last - 5), last


def map_from_description(lm: LanguageModel, saved: dict) -> CausalMap:
    """The map of directions, or of adapters, that wrote ``saved``."""
    kinds: Sequence[type[CausalMap]] = (AdapterMap, CausalMap)
    return next(kind for kind in kinds if kind.__name__ == saved["kind"]).from_description(lm, saved)
