"""Rank-one edits W + R·b aᵀ of the matrices that write to the stream (docs/method.md §3).

This module finds the matrices, edits them while a model runs, and merges an edit into the weights.
"""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers.pytorch_utils import Conv1D

from melbo.errors import MelboError
from melbo.maths.linalg import random_rows, unit
from melbo.models.edits import Edit, Removable, Tokens
from melbo.models.language_model import LanguageModel
from melbo.models.weights.output_matrices import OutputMatrix, attention_output, output_matrices
from melbo.models.weights.storage import Change, changed, read, require_plain

Matrix = Literal["attention", "mlp"]
# a [rows, d_in] and b [rows, d_out]; b(aᵀx) is added to the output
Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Site:
    """A matrix that is edited.

    Attributes:
        block: Index of its block.
        name: Dotted name of its module in the model.
        d_in: Width of its input.
        d_out: Width of the stream.
    """

    block: int
    name: str
    d_in: int
    d_out: int


def find_sites(lm: LanguageModel, band: tuple[int, int], matrix: Matrix) -> tuple[Site, ...]:
    """Find the output matrix of attention, or of the MLP, in each block of a band.

    Matrices are recognised by how blocks behave (see `melbo.models.weights.output_matrices`).

    Args:
        lm: The model.
        band: Blocks ``band[0]`` … ``band[1] − 1``.
        matrix: ``"attention"`` or ``"mlp"``.

    Raises:
        MelboError: The band lies outside the model, ``matrix`` is neither, or a block has no such
            matrix; the message names the matrices that it has.
    """
    first, last = band
    if not 0 <= first < last <= lm.depth:
        raise MelboError(
            f"the band is blocks {first} to {last - 1}, but {lm.name} has blocks 0 to "
            f"{lm.depth - 1}: expected some of these, in order"
        )
    if matrix not in ("attention", "mlp"):
        raise MelboError(f"matrix is {matrix!r}: expected 'attention' or 'mlp'")
    find = attention_output if matrix == "attention" else _mlp_output
    return tuple(_site(lm, find(lm, block)) for block in range(first, last))


def _mlp_output(lm: LanguageModel, block: int) -> OutputMatrix:
    every, mixing = output_matrices(lm, block), attention_output(lm, block).name
    others = [found for found in every if found.name != mixing]
    if len(others) != 1:
        raise MelboError(
            f"block {block} of {lm.name} has no single MLP output matrix: its output matrices are "
            f"{', '.join(found.name for found in every)}; use matrix='attention'"
        )
    return others[0]


def _site(lm: LanguageModel, found: OutputMatrix) -> Site:
    if not isinstance(found.module, (nn.Linear, Conv1D)):
        raise MelboError(
            f"{found.name} of {lm.name} is no single matrix ({type(found.module).__name__}): "
            "adapters need one; try the other"
        )
    if isinstance(found.module, Conv1D):
        d_in, d_out = found.weight.shape
    else:  # packed weights have another shape
        d_in, d_out = found.module.in_features, found.module.out_features
    return Site(found.block, found.name.removesuffix(".weight"), d_in, d_out)


def part_widths(sites: Sequence[Site]) -> tuple[int, ...]:
    """Widths of the parts of a flattened factor: a and b of each site in turn."""
    return tuple(width for site in sites for width in (site.d_in, site.d_out))


def pairs(sites: Sequence[Site], v: Tensor, strength: Tensor) -> list[Pair]:
    """Unflatten factors into an edit (a, b) at each site.

    With K sites the parts of v have norm 1/√(2K), so that 2K·v_b v_aᵀ is b̂âᵀ with unit vectors:
    strength 1 adds a matrix of norm 1 at every site.

    Args:
        sites: The sites.
        v: Flattened unit factors ``[rows, D]``.
        strength: Norm of the matrix that each row adds at every site ``[rows]``.
    """
    found = torch.split(v, list(part_widths(sites)), dim=-1)
    return [
        (2 * len(sites) * a, strength[:, None] * b)
        for a, b in zip(found[::2], found[1::2], strict=True)
    ]


def random_factors(sites: Sequence[Site], num: int, generator: torch.Generator) -> Tensor:
    """Flattened unit factors ``[num, D]``, a and b of every site uniform on the sphere.

    Args:
        sites: The sites.
        num: Number of factors.
        generator: Source of everything random.
    """
    parts = [random_rows(num, width, generator) for width in part_widths(sites)]
    return unit(torch.cat(parts, 1))


@contextmanager
def running(
    lm: LanguageModel, sites: Sequence[Site], edits: Sequence[Pair]
) -> Generator[None, None, None]:
    """Make each site's matrix give Wx + b(aᵀx) inside the ``with`` block.

    k edits share a batch of k·n rows, n rows each. A batch of one row becomes k rows at the first
    site.

    Args:
        lm: The model.
        sites: The sites.
        edits: A pair (a, b) for each site.
    """
    edited = _put(lm, sites, edits)
    try:
        yield
    finally:
        for each in reversed(edited):
            each.remove()


def _put(lm: LanguageModel, sites: Sequence[Site], edits: Sequence[Pair]) -> list["_Edited"]:
    return [_Edited(lm.model, site.name, a, b) for site, (a, b) in zip(sites, edits, strict=True)]


class _Edited(nn.Module):
    """A module that replaces a matrix until `remove` is called, and gives Wx + b(aᵀx).

    A hook would not do, because compiled blocks run past hooks.
    """

    def __init__(self, model: nn.Module, path: str, a: Tensor, b: Tensor) -> None:
        super().__init__()
        where, _, self._name = path.rpartition(".")
        # in a tuple, because a module must not be part of its own part
        self._parent = (model.get_submodule(where),)
        self.matrix: Any = model.get_submodule(path)
        # some blocks look at it
        self.weight = self.matrix.weight
        self.a, self.b = a, b
        setattr(self._parent[0], self._name, self)

    def remove(self) -> None:
        """Put the matrix back."""
        setattr(self._parent[0], self._name, self.matrix)

    def forward(self, x: Tensor) -> Tensor:
        out, k = self.matrix(x), len(self.a)
        precise = torch.promote_types(x.dtype, torch.float32)
        a, b = (t.to(x.device, precise) for t in (self.a, self.b))
        runs = 1 if len(x) == 1 else k
        rows = x.to(precise).reshape(runs, -1, x.shape[-1])  # [k or 1, n·T, d_in]
        added = (rows @ a[:, :, None]) * b[:, None, :]  # [k, n·T, d_out]
        added = added.view(max(len(out), k), *out.shape[1:])
        total: Tensor = (out.to(precise) + added).to(out.dtype)
        return total


@dataclass(frozen=True)
class RankOne(Edit):
    """Rank-one edits at several sites, the same for all rows of a batch or one for each.

    Attributes:
        sites: The matrices that are edited.
        v: Flattened unit factors ``[1 or rows, D]``.
        strength: Norm of the matrix that each row adds at every site ``[1 or rows]``.
    """

    # it acts at all tokens alike
    prefix_safe: ClassVar[bool] = True
    sites: tuple[Site, ...]
    v: Tensor
    strength: Tensor

    @property
    def layer(self) -> int:
        """First block that is touched."""
        return self.sites[0].block

    def attach(self, lm: LanguageModel, tokens: Tokens) -> list[Removable]:
        """See `Edit.attach`; acts at all tokens."""
        edits = pairs(self.sites, self.v, self.strength)
        return [self._check_rows(lm), *_put(lm, self.sites, edits)]

    def _check_rows(self, lm: LanguageModel) -> RemovableHandle:
        """Refuse a batch whose rows are not as many as the factors."""

        def hook(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            rows = (args[0] if args else kwargs["hidden_states"]).shape[0]
            if len(self.v) not in (1, rows):
                raise MelboError(
                    f"got {len(self.v)} adapters for a batch of {rows} rows: expected one for each"
                )

        # the block's rows, as some blocks flatten what their matrices get
        return lm.blocks[self.layer].register_forward_pre_hook(hook, with_kwargs=True)

    def rows(self, which: Tensor) -> "RankOne":
        """See `Edit.rows`."""
        if len(self.v) == 1:
            return self
        return replace(self, v=self.v[which], strength=self.strength[which])


@contextmanager
def merged(lm: LanguageModel, edit: RankOne) -> Generator[None, None, None]:
    """Merge the edit of a single factor into the weights inside the ``with`` block.

    Afterwards the weights are what they were, bit by bit. On a few inputs it is verified that each
    matrix gives what the edit gives.

    Args:
        lm: The model.
        edit: The edit, of one factor.

    Raises:
        MelboError: There are several factors, a matrix is quantised, the weights would not be
            finite, or a matrix does not give afterwards what the edit gives.
    """
    if len(edit.v) != 1:
        raise MelboError(f"got {len(edit.v)} factors to merge: expected one")
    exact = pairs(edit.sites, edit.v.double(), edit.strength.double())
    probes = [_Probe(lm, site, a[0], b[0]) for site, (a, b) in zip(edit.sites, exact, strict=True)]
    changes = [Change(f"{p.site.name}.weight", p.add) for p in probes]
    with changed(lm.model, changes):
        for probe in probes:
            probe.verify()
        yield


class _Probe:
    """A site, its edit, and what its matrix gives on a few inputs before the edit."""

    def __init__(self, lm: LanguageModel, site: Site, a: Tensor, b: Tensor) -> None:
        self.site, self.a, self.b = site, a, b
        self.module: Any = lm.model.get_submodule(site.name)
        require_plain(self.module, self.module.weight, f"{site.name}.weight")
        weight = read(lm.model, f"{site.name}.weight")
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(3, len(a), generator=generator, dtype=torch.float64)
        along = a.cpu() / a.norm().cpu().clamp_min(1e-300) * len(a) ** 0.5
        self.x = torch.cat([along[None], noise])[None].to(weight.device, weight.dtype)
        self.eps = torch.finfo(weight.dtype).eps
        with torch.no_grad():
            self.before: Tensor = self.module(self.x).double().cpu()

    def add(self, weight: Tensor) -> Tensor:
        """W + b aᵀ, in double precision.

        Raises:
            MelboError: It would not be finite.
        """
        added = torch.outer(self.b, self.a).to(weight.device)
        total = weight.double() + (added.T if isinstance(self.module, Conv1D) else added)
        if not torch.isfinite(total.to(weight.dtype)).all():
            raise MelboError(f"{self.site.name} would not be finite: lower the strength")
        return total

    def verify(self) -> None:
        """Refuse a matrix that does not give Wx + b(aᵀx).

        Raises:
            MelboError: It does not.
        """
        with torch.no_grad():
            found = self.module(self.x).double().cpu() - self.before
        expected = (self.x.double().cpu() @ self.a.cpu())[..., None] * self.b.cpu()
        rounding = 4 * self.eps * self.before.norm()
        if not (found - expected).norm() <= 0.1 * expected.norm() + rounding:
            raise MelboError(
                f"{self.site.name} does not give what the edit gives after merging "
                f"({type(self.module).__name__}): the weights are put back as they were; "
                "steer without merging"
            )
