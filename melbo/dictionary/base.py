"""The interface of every dictionary: encode, decode, the terms of its loss, unit directions.

See docs/dictionaries.md.
"""

from abc import ABC, abstractmethod
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import relu

from melbo.errors import MelboError
from melbo.maths.linalg import random_rows


class Step(NamedTuple):
    """One pass over a batch, as training needs it.

    Attributes:
        terms: Terms whose sum is the loss, by name, each a mean over activations.
        reconstruction: Reconstruction that the latents give ``[..., d]``.
        fired: Whether any activation makes a latent active ``[m]``.
    """

    terms: dict[str, Tensor]
    reconstruction: Tensor
    fired: Tensor


class Dictionary(nn.Module, ABC):
    """A sparse dictionary of m directions for activations of width d.

    The decoder starts with random unit directions, the encoder as its transpose, the rest at zero.

    Attributes:
        W_enc: Encoder ``[d, m]``.
        b_enc: Bias of the encoder ``[m]``.
        W_dec: Directions, one for each latent ``[m, d]``: the columns of the decoder, as rows.
        b_dec: Bias of the decoder ``[d]``, which is taken off before encoding.
        biases: Names of the parameters in units of the activations.

    Args:
        d: Width of the activations.
        m: Number of latents.
        seed: Random seed of the directions.

    Raises:
        MelboError: A size is less than 1.
    """

    biases: ClassVar[tuple[str, ...]] = ("b_enc", "b_dec")

    def __init__(self, d: int, m: int, seed: int = 0) -> None:
        super().__init__()
        if d < 1 or m < 1:
            raise MelboError(
                f"got a dictionary of {m} latents for width {d}: expected 1 or more of each"
            )
        directions = random_rows(m, d, torch.Generator().manual_seed(seed))
        self.W_dec = nn.Parameter(directions)
        self.W_enc = nn.Parameter(directions.T.contiguous())
        self.b_enc = nn.Parameter(torch.zeros(m))
        self.b_dec = nn.Parameter(torch.zeros(d))

    @abstractmethod
    def encode(self, x: Tensor) -> Tensor:
        """Latents ``[..., m]`` of activations ``[..., d]``."""

    @abstractmethod
    def _step(self, x: Tensor, sparsity: float) -> Step:
        """The pass that `step` returns."""

    def loss_terms(self, x: Tensor, sparsity: float = 0.0) -> dict[str, Tensor]:
        """Terms whose sum is the loss, by name, each a mean over activations; see `step`.

        Args:
            x: Activations ``[..., d]``.
            sparsity: λ, the weight of the L1 penalty, in units of the activations.
        """
        return self.step(x, sparsity).terms

    def step(self, x: Tensor, sparsity: float = 0.0) -> Step:
        """Terms of the loss, with the reconstruction and the active latents they come from.

        Args:
            x: Activations ``[..., d]``.
            sparsity: λ, the weight of the L1 penalty, in units of the activations.

        Raises:
            MelboError: The activations do not fit or are not finite, or λ is negative or not
                finite.
        """
        if not 0 <= sparsity < float("inf"):
            raise MelboError(f"the weight of sparsity is {sparsity}: expected a number from 0 up")
        return self._step(x, sparsity)

    def decode(self, f: Tensor, frozen: bool = False) -> Tensor:
        """Reconstruction ``[..., d]``: f·W_dec + b_dec.

        Args:
            f: Latents ``[..., m]``.
            frozen: Whether the decoder gets no gradient.

        Raises:
            MelboError: The latents do not fit.
        """
        if f.shape[-1:] != self.b_enc.shape:
            raise MelboError(
                f"got latents of shape {list(f.shape)}: "
                f"expected {len(self.b_enc)} of each activation, as this dictionary has"
            )
        if frozen:
            return f @ self.W_dec.detach() + self.b_dec.detach()
        return f @ self.W_dec + self.b_dec

    def forward(self, x: Tensor) -> Tensor:
        """Reconstruction ``[..., d]`` of activations ``[..., d]``."""
        return self.decode(self.encode(x))

    @torch.no_grad()
    def rescale(self, factor: float) -> None:
        """Make the dictionary of x that of ``factor``·x: latents and reconstructions grow alike.

        Every architecture here is homogeneous, so that only biases change.

        Args:
            factor: The factor, above 0.

        Raises:
            MelboError: It is not a positive number.
        """
        if not 0 < factor < float("inf"):
            raise MelboError(f"the factor is {factor}: expected a positive number")
        for name in self.biases:
            getattr(self, name).mul_(factor)

    def optimiser(self, lr: float) -> torch.optim.Adam:
        """Adam whose steps leave the directions of the decoder at norm 1.

        The part of a gradient along its direction is taken off before a step, and the directions
        are divided by their norms after it.

        Args:
            lr: Learning rate.

        Raises:
            MelboError: A direction has another norm than 1, so that its first step would change
                what the dictionary computes.
        """
        norms = self.W_dec.detach().norm(dim=1)
        if not ((norms - 1).abs() < 1e-2).all():
            raise MelboError(
                f"directions have norms from {norms.min():.3g} to {norms.max():.3g}, training "
                "keeps them at 1: divide W_dec by them, and multiply what encodes by them"
            )
        adam = torch.optim.Adam(self.parameters(), lr=lr, fused=True)
        adam.register_step_pre_hook(self._before_step)
        adam.register_step_post_hook(self._after_step)
        return adam

    def preactivations(self, x: Tensor) -> Tensor:
        """π = (x − b_dec)·W_enc + b_enc, ``[..., m]``.

        Args:
            x: Activations ``[..., d]``.

        Raises:
            MelboError: The activations do not fit or are not finite.
        """
        return self.projections(x) + self.b_enc

    def projections(self, x: Tensor) -> Tensor:
        """(x − b_dec)·W_enc, ``[..., m]``.

        Args:
            x: Activations ``[..., d]``.

        Raises:
            MelboError: The activations do not fit or are not finite.
        """
        self.check(x)
        return (x - self.b_dec) @ self.W_enc

    def check(self, x: Tensor) -> None:
        """Refuse activations that the dictionary cannot be of.

        Raises:
            MelboError: The activations do not fit or are not finite.
        """
        width = len(self.b_dec)
        if x.shape[-1:] != self.b_dec.shape or x.numel() == 0:
            raise MelboError(
                f"got activations of shape {list(x.shape)}: "
                f"expected one or more of width {width}, as this dictionary has"
            )
        if not torch.isfinite(x).all():
            raise MelboError(
                "the activations hold values that are not finite: leave those tokens out"
            )

    @torch.no_grad()
    def _before_step(self, *_: Any) -> None:
        """Take off the part of the decoder's gradient that would only change norms."""
        grad = self.W_dec.grad
        if grad is not None:
            along = torch.linalg.vecdot(grad, self.W_dec)[:, None]
            grad.addcmul_(along, self.W_dec, value=-1)

    @torch.no_grad()
    def _after_step(self, *_: Any) -> None:
        """Divide the directions of the decoder by their norms."""
        norms = self.W_dec.norm(dim=1, keepdim=True)
        # in place, which takes a third of the time of `unit`
        self.W_dec.div_(norms.clamp_min(torch.finfo(norms.dtype).tiny))


def any_active(f: Tensor) -> Tensor:
    """Tell which latents are not 0 for some activation ``[m]``.

    Args:
        f: Latents ``[..., m]``.
    """
    return (f.detach() != 0).flatten(0, -2).any(0)


def squared_error(x: Tensor, y: Tensor) -> Tensor:
    """Mean of ‖x − y‖² over activations ``[..., d]``, a scalar."""
    return (x - y).square().sum(-1).mean()


def l1(f: Tensor) -> Tensor:
    """Mean of ‖ReLU(f)‖₁ over activations ``[..., m]``, a scalar."""
    return relu(f).sum(-1).mean()
