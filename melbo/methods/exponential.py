"""All orders at once: directions along which a finite push of norm R changes the target most."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from melbo.errors import MelboError
from melbo.maps.base import Map
from melbo.maps.smooth import SmoothMap, require_smooth
from melbo.maths.linalg import Orthogonalise, orthogonalise, random_rows, unit
from melbo.maths.transcoder import Factors, exponential_factors, fit_strengths
from melbo.methods.base import Iterative
from melbo.methods.iterate import Record
from melbo.methods.starts import projected_start


class _State(NamedTuple):
    """Factors between two sweeps.

    Attributes:
        V: Unit rows ``[m, d_source]``, not yet pushed apart.
        U: Unit rows ``[m, d_target]``.
        gain: Norm of each factor's last gradient ``[m]``.
        found: Factors that the last sweep evaluated.
    """

    V: Tensor
    U: Tensor
    gain: Tensor
    found: Factors | None = None


@dataclass(frozen=True)
class Exponential(Iterative):
    """The exponential transcoder, by orthogonalised gradient iteration (docs/method.md §3).

    Each sweep: V ← orthogonalise(V), signs kept; D = Δ_R(V); u ← D/‖D‖; then, from the same forward
    pass, g = R·J(Rv)ᵀu and v ← normalise(g). The sign of v matters.

    Attributes:
        num_factors: m; more than d_source only with ``"soft"``.
        scale: R.
        max_steps: Largest number of sweeps.
        tol: See `melbo.methods.iterate.iterate`.
        orthogonalise: ``"qr"``, ``"polar"`` or ``"soft"`` (see `melbo.maths.linalg.orthogonalise`).
        start: ``"projected"``: right singular vectors of a projected Jacobian, completed at random.
            ``"backward"``: for each factor, the gradient of a random output direction.
        beta: Step from the old unit directions (0) to the new ones (1).
        nonnegative: Whether strengths α are kept from being negative (docs/method.md §2).
    """

    max_steps: int = 10
    tol: float = 1e-3
    orthogonalise: Orthogonalise = "qr"
    start: Literal["projected", "backward"] = "projected"
    beta: float = 1.0
    nonnegative: bool = True

    def check(self, map: Map) -> None:
        """Refuse settings that cannot work on this map (see `Method.check`).

        Raises:
            MelboError: A setting is misspelt or out of range, or the map has no Jacobian to start
                from.
        """
        super().check(map)
        if self.orthogonalise not in ("qr", "polar", "soft"):
            raise MelboError(
                f"orthogonalise is {self.orthogonalise!r}: expected 'qr', 'polar' or 'soft'"
            )
        if self.orthogonalise != "soft":
            self.check_room(map.d_source, f"with orthogonalise={self.orthogonalise!r}")
        if self.start not in ("projected", "backward"):
            raise MelboError(f"start is {self.start!r}: expected 'projected' or 'backward'")
        if self.start == "projected" and (map.parts or not isinstance(map, SmoothMap)):
            raise MelboError(
                "this map has no Jacobian at zero to start from: use CPE, or start='backward'"
            )
        if not 0 < self.beta <= 1:
            raise MelboError(f"beta is {self.beta}: expected more than 0 and at most 1")

    def init(self, map: Map, generator: torch.Generator) -> _State:
        """Directions to start from."""
        m = self.num_factors
        if self.start == "projected":
            V = projected_start(require_smooth(map), m, generator)
        else:
            U = random_rows(m, map.d_target, generator).to(map.device, map.dtype)
            V = map.unit(map.backward(U, self.scale, generator))
        return _State(V, torch.zeros(m, map.d_target).to(V), torch.ones(m).to(V))

    def step(self, map: Map, state: _State) -> tuple[_State, Record]:
        """One sweep over all factors, one forward and one backward pass each."""
        V = orthogonalise(state.V, self.orthogonalise, state.gain)
        V = map.unit(V) if map.parts else V

        def output_direction(D: Tensor, rows: slice) -> Tensor:
            return unit(self._mix(unit(D), state.U[rows]))

        D, gradient = map.value_and_vjp(self.scale * V, output_direction)
        U = output_direction(D, slice(None))
        gradient = self.scale * gradient
        moved = map.unit(self._mix(map.unit(gradient, fallback=V), V), fallback=V)

        # with β < 1, u is not D/‖D‖
        b = (U * D).sum(-1)
        found = fit_strengths(V, U, b, "exponential", nonnegative=self.nonnegative)
        record = {
            "objective": D.norm(dim=-1).mean().item(),
            "explained": found.explained,
            "change": (1 - (moved * state.V).sum(-1)).max().item(),
        }
        return _State(moved, U, gradient.norm(dim=-1), found), record

    def finish(self, map: Map, state: _State) -> Factors:
        """Factors at the final V."""
        return exponential_factors(state.V, map.value(self.scale * state.V), self.nonnegative)

    def _mix(self, new: Tensor, old: Tensor) -> Tensor:
        return self.beta * new + (1 - self.beta) * old


@dataclass(frozen=True)
class CPE(Exponential):
    """Exponential with the defaults of CPE (arXiv 2606.29604), for an `AdapterMap`.

    The map says which blocks are edited (docs/method.md §3).

    Attributes:
        num_factors: m.
        scale: R, the norm of what a factor adds to each matrix.
        max_steps: Largest number of sweeps.
        tol: See `melbo.methods.iterate.iterate`.
        orthogonalise: Orthogonaliser of the flattened factors.
        start: ``"backward"``: gradients of random output directions.
        beta: See `Exponential`.
        nonnegative: See `Exponential`.
    """

    max_steps: int = 30
    orthogonalise: Orthogonalise = "soft"
    start: Literal["projected", "backward"] = "backward"
