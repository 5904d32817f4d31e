"""The plain formulation that the fast one is measured against, as the published code computes it.

Written from docs/method.md §9, not copied. It applies function transforms to a function of one
direction, alone or vectorised. It uses eager attention and float32, and runs one block too many and
the unembedding on every pass. Its fit keeps the published update: QR that turns signs, and U one
step behind V and not computed afresh at the end. Used for measuring only.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from scipy.optimize import root_scalar
from torch import Tensor
from torch.func import jvp, vjp, vmap

from melbo.errors import MelboError
from melbo.maps.residual import CausalMap
from melbo.maths.linalg import random_rows, unit
from melbo.models.replay import Slice
from melbo.models.text.prompts import pad_rows


class PlainFormulation:
    """Δ of a single prompt and what is done with it, plainly.

    Args:
        cmap: Map to compute, of one prompt, its model in float32.
        batch: Number of directions that are vectorised over; with 1, none are.

    Raises:
        MelboError: The map does not read the stream.
    """

    def __init__(self, cmap: CausalMap, batch: int = 1) -> None:
        if cmap.read != "stream":
            raise MelboError(
                f"the plain formulation reads the stream, this map reads {cmap.read}: "
                "measure it with --no-plain"
            )
        self.lm, self.cmap, self.batch = cmap.lm, cmap, batch
        ids, mask = pad_rows(cmap.prompts.tokens, self.lm.pad, side="right")
        end = min(cmap.target + 1, self.lm.depth)
        with self._eager():
            self.part: Slice = self.lm.capture(ids, mask, cmap.source, end)
        self.base = self._read(self.part.hidden)
        self.d = cmap.d_source

    @contextmanager
    def _eager(self) -> Iterator[None]:
        usual = self.lm.config._attn_implementation
        self.lm.model.set_attn_implementation("eager")
        try:
            yield
        finally:
            self.lm.model.set_attn_implementation(usual)

    def _read(self, hidden: Tensor) -> Tensor:
        """Target stream at the read positions, ``[1, T, d] → [target_tokens, d]``.

        The block after it and the unembedding run too.
        """
        read = hidden
        with self._eager():
            for layer, reached in self.part.trace(hidden):
                hidden = reached
                if layer == self.cmap.target:
                    read = reached
        self.lm.model.get_output_embeddings()(hidden)
        return read[0, -self.cmap.placement.target_tokens :]

    def delta(self, theta: Tensor) -> Tensor:
        """Δ(θ) of one direction, ``[d] → [d]``."""
        return (self._read(self.part.hidden + theta) - self.base).mean(0)

    def value(self, theta: Tensor) -> Tensor:
        """Δ(θ), ``[k, d] → [k, d]``."""
        with torch.no_grad():
            return self._rows(self.delta, theta)[0]

    def value_and_vjp(self, theta: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """Δ(θ) and J(θ)ᵀu, ``[k, d]`` each."""

        def both(theta: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
            value, pull, *_ = vjp(self.delta, theta)
            return value, pull(u)[0]

        value, gradient = self._rows(both, theta, u)
        return value, gradient

    def jvp(self, v: Tensor) -> Tensor:
        """J(0)v, ``[k, d] → [k, d]``."""
        zero = torch.zeros(self.d)
        return self._rows(lambda v: jvp(self.delta, (zero,), (v,))[1], v)[0]

    def hvp(self, u: Tensor, v: Tensor) -> Tensor:
        """H(u, v, ·), ``[k, d] → [k, d]``."""
        zero = torch.zeros(self.d)

        def one(u: Tensor, v: Tensor) -> Any:
            return jvp(lambda theta: vjp(self.delta, theta)[1](u)[0], (zero,), (v,))[1]

        return self._rows(one, u, v)[0]

    def _rows(self, fn: Callable[..., Any], *rows: Tensor) -> tuple[Tensor, ...]:
        """``fn`` of every row."""
        if self.batch == 1:
            results = [fn(*row) for row in zip(*rows, strict=True)]
        else:
            parts = zip(*(torch.split(r, self.batch) for r in rows), strict=True)
            results = [vmap(fn)(*part) for part in parts]
        join = torch.stack if self.batch == 1 else torch.cat
        results = [r if isinstance(r, tuple) else (r,) for r in results]
        return tuple(join(list(parts)).detach() for parts in zip(*results, strict=True))

    def ratio(self, R: float, directions: Tensor) -> float:
        """Non-linear share of the response at R on unit rows ``[k, d]`` (docs/method.md §4).

        Jacobian–vector products are taken anew at every R: the published time, 40 to 80 s, is that
        of doing so.
        """
        linear = R * self.jvp(directions)
        off = (self.value(R * directions) - linear).norm(dim=-1) / linear.norm(dim=-1)
        return float(off.square().mean().sqrt())

    def calibrate(self, directions: Tensor, nonlinearity: float = 0.5) -> tuple[float, int]:
        """R with ratio(R) = λ to 1 %, by Brent's method.

        Args:
            directions: Unit rows ``[k, d]``.
            nonlinearity: λ.

        Returns:
            R, sought from 1e-3 to ten times the stream's norm, and the number of evaluations.
        """
        high = 10 * (self.cmap.source_norm or 1.0)
        root = root_scalar(
            lambda R: self.ratio(R, directions) - nonlinearity,
            bracket=(1e-3, high),
            rtol=0.01,
            xtol=1e-3,
        )
        return root.root, root.function_calls

    def start(self, m: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Projected Jacobian: V completed at random, U = normalise(JV), ``[m, d]`` each."""
        W = random_rows(32, self.d, generator)
        J = self.value_and_vjp(torch.zeros(32, self.d), W)[1]
        leading = torch.linalg.svd(J, full_matrices=False)[2]
        V = torch.cat([leading, random_rows(m, self.d, generator)])[:m]
        return V, unit(self.jvp(V))

    def sweep(self, V: Tensor, U: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """One published sweep over all factors.

        Args:
            V: Source directions ``[m, d]``.
            U: Target directions ``[m, d]``.
            scale: R.
        """
        V = torch.linalg.qr(V.T)[0].T
        D, gradient = self.value_and_vjp(scale * V, U)
        return unit(gradient), unit(D)
