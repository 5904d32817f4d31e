"""Rank-one edits of writing matrices, W + R·b aᵀ for each block of a band: where they go, and what they do while a model runs (METHOD §3)."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers.pytorch_utils import Conv1D

from .edit import Edit, Removable, Tokens
from .errors import MelboError
from .linalg import random_rows, unit
from .model import LanguageModel
from .writers import Writer, mixer, writers

Matrix = Literal["attention", "mlp"]
Pair = tuple[Tensor, Tensor]  # a [rows, d_in] and b [rows, d_out]: what is added to the output is b(aᵀx)


@dataclass(frozen=True)
class Site:
    """A matrix that is edited.

    Attributes:
        block: Index of its block.
        name: Dotted name of its module in the model.
        d_in: Width of what it reads.
        d_out: Width of the stream.
    """

    block: int
    name: str
    d_in: int
    d_out: int


def find_sites(lm: LanguageModel, band: tuple[int, int], matrix: Matrix) -> tuple[Site, ...]:
    """The output matrix of attention, or of the MLP, in blocks ``band[0]`` … ``band[1] − 1``; found by what blocks do (see `melbo.writers`).

    Raises:
        MelboError: A band outside the model, another ``matrix``, or a block without such a matrix; names what is there.
    """
    first, last = band
    if not 0 <= first < last <= lm.depth:
        raise MelboError(f"the band is blocks {first} to {last - 1}, but {lm.name} has blocks 0 to {lm.depth - 1}: expected some of these, in order")
    if matrix not in ("attention", "mlp"):
        raise MelboError(f"matrix is {matrix!r}: expected 'attention' or 'mlp'")
    found = []
    for block in range(first, last):
        if matrix == "attention":
            writer = mixer(lm, block)
        else:
            of_block, mixing = writers(lm, block), mixer(lm, block).name
            others = [w for w in of_block if w.name != mixing]
            if len(others) != 1:
                names = ", ".join(w.name for w in of_block)
                raise MelboError(f"block {block} of {lm.name} has no single MLP output matrix: what writes there is {names}; use matrix='attention'")
            writer = others[0]
        found.append(_site(lm, writer))
    return tuple(found)


def _site(lm: LanguageModel, writer: Writer) -> Site:
    if not isinstance(writer.module, (nn.Linear, Conv1D)):
        raise MelboError(f"{writer.name} of {lm.name} is no single matrix ({type(writer.module).__name__}): adapters need one; try the other")
    d_in, d_out = writer.weight.shape if isinstance(writer.module, Conv1D) else writer.weight.shape[::-1]
    return Site(writer.block, writer.name.removesuffix(".weight"), d_in, d_out)


def parts(sites: Sequence[Site]) -> tuple[int, ...]:
    """Widths of the parts of a flattened factor: a and b of the first site, of the second, and so on."""
    return tuple(width for site in sites for width in (site.d_in, site.d_out))


def pairs(sites: Sequence[Site], v: Tensor, strength: Tensor) -> list[Pair]:
    """The edits of flattened unit factors ``v`` ``[rows, D]``, times ``strength`` ``[rows]``.

    With K sites the parts of v have norm 1/√(2K), so that 2K·v_b v_aᵀ is b̂âᵀ of unit vectors: strength 1 adds a matrix of norm 1 at every site.
    """
    found = v.split(parts(sites), dim=-1)
    return [(2 * len(sites) * a, strength[:, None] * b) for a, b in zip(found[::2], found[1::2], strict=True)]


def random_factors(sites: Sequence[Site], num: int, generator: torch.Generator) -> Tensor:
    """Flattened unit factors ``[num, D]``, a and b of every site uniform on the sphere."""
    return unit(torch.cat([random_rows(num, width, generator) for width in parts(sites)], 1))


@contextmanager
def running(lm: LanguageModel, sites: Sequence[Site], edits: Sequence[Pair]) -> Iterator[None]:
    """Inside the ``with`` block the output of each site's matrix is Wx + b(aᵀx).

    k pairs take a batch of k·n rows in runs of n; a batch of one row becomes k rows where it first meets them.
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
    """Stands in the place of a matrix until `remove`: Wx + b(aᵀx). No hook, because compiled blocks run past those."""

    def __init__(self, model: nn.Module, path: str, a: Tensor, b: Tensor) -> None:
        super().__init__()
        where, _, self._name = path.rpartition(".")
        self._parent = (model.get_submodule(where),)  # in a tuple, because a module must not be part of its own part
        self.matrix = model.get_submodule(path)
        self.weight = self.matrix.weight  # some blocks look at it
        self.a, self.b = a, b
        setattr(self._parent[0], self._name, self)

    def remove(self) -> None:
        """Put the matrix back."""
        setattr(self._parent[0], self._name, self.matrix)

    def forward(self, x: Tensor) -> Tensor:
        out, k = self.matrix(x), len(self.a)
        a, b = (t.to(x.device, torch.promote_types(x.dtype, torch.float32)) for t in (self.a, self.b))
        rows = x.to(a.dtype).reshape(1 if len(x) == 1 else k, -1, x.shape[-1])  # [k or 1, n·T, d_in]
        added = (rows @ a[:, :, None]) * b[:, None, :]  # [k, n·T, d_out]
        return (out.to(a.dtype) + added.view(max(len(out), k), *out.shape[1:])).to(out.dtype)


@dataclass(frozen=True)
class RankOne(Edit):
    """Rank-one edits at several sites, the same for all rows of a batch or one for each.

    Attributes:
        sites: Where.
        v: Flattened unit factors ``[1 or rows, D]``.
        strength: Norm of what is added to each matrix ``[1 or rows]``.
    """

    splits = True  # it acts at all tokens alike
    sites: tuple[Site, ...]
    v: Tensor
    strength: Tensor

    @property
    def layer(self) -> int:  # type: ignore[override]  # derived, where other edits are given it
        """The first block that is touched."""
        return self.sites[0].block

    def attach(self, lm: LanguageModel, tokens: Tokens) -> list[Removable]:
        """See `Edit.attach`: at all tokens."""
        return [self._counting(lm), *_put(lm, self.sites, pairs(self.sites, self.v, self.strength))]

    def _counting(self, lm: LanguageModel) -> RemovableHandle:
        """A batch of other rows than factors would be taken in runs."""

        def hook(module: nn.Module, args: tuple) -> None:
            if len(self.v) not in (1, args[0].shape[0]):
                raise MelboError(f"got {len(self.v)} adapters for a batch of {args[0].shape[0]} rows: expected one for each")

        return lm.model.get_submodule(self.sites[0].name).register_forward_pre_hook(hook)

    def rows(self, which: Tensor) -> "RankOne":
        """See `Edit.rows`."""
        return self if len(self.v) == 1 else replace(self, v=self.v[which], strength=self.strength[which])


@contextmanager
def merged(lm: LanguageModel, edit: RankOne) -> Iterator[None]:
    """Inside the ``with`` block the edit of a single factor is in the weights themselves; the originals are put back bit by bit.

    Raises:
        MelboError: Several factors, or weights that would not be finite.
    """
    if len(edit.v) != 1:
        raise MelboError(f"got {len(edit.v)} factors to merge: expected one")
    kept: list[tuple[Tensor, Tensor]] = []
    new: list[Tensor] = []
    for site, (a, b) in zip(edit.sites, pairs(edit.sites, edit.v.double(), edit.strength.double()), strict=True):
        module = lm.model.get_submodule(site.name)
        added = torch.outer(b[0], a[0]).to(module.weight.device)
        changed = (module.weight.double() + (added.T if isinstance(module, Conv1D) else added)).to(module.weight.dtype)
        if not torch.isfinite(changed).all():
            raise MelboError(f"{site.name} would not be finite: lower the strength")
        kept.append((module.weight, module.weight.detach().clone()))
        new.append(changed)
    try:
        with torch.no_grad():
            for (weight, _), changed in zip(kept, new, strict=True):
                weight.copy_(changed)
        yield
    finally:
        with torch.no_grad():
            for weight, original in kept:
                weight.copy_(original)
