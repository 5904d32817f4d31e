"""A set of directions: source and target of each, its strength, and the run folder."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor

from melbo.display.figures import finished, panels, whole_numbers
from melbo.display.shown import Record, Shown, Table, number
from melbo.errors import MelboError
from melbo.features.run_folder import read_run, read_tensors, write_run
from melbo.features.steerable import Steerable
from melbo.maths.geometry import main_direction, mean_direction
from melbo.maths.linalg import random_rows
from melbo.models.edits import Add, Edit, Where
from melbo.models.language_model import LanguageModel
from melbo.models.placement import Placement

if TYPE_CHECKING:
    from melbo.display.picture import Picture

_TENSORS = ("V", "U", "alpha")
_FIELDS = ("schema", "kind", "scale", "source", "target")


@dataclass(frozen=True, repr=False)
class FeatureSet(Steerable, Shown):
    """m features: a direction at the source layer, its effect at the target layer, its strength.

    Attributes:
        V: Source directions ``[m, d_source]``, unit rows.
        U: Target directions ``[m, d_target]``, unit rows.
        alpha: Strengths in the transcoder ``[m]``.
        scale: R; steering with strength 1 adds R·v.
        source: Layer (``hidden_states`` index) that V is added to.
        target: Layer that U was read at.
        meta: Origin of the features: model, map, method, seed, history, versions (JSON-able).

    Raises:
        MelboError: Shapes do not fit, rows are not of unit norm, values are not finite, or R ≤ 0.
    """

    V: Tensor
    U: Tensor
    alpha: Tensor
    scale: float
    source: int
    target: int
    meta: Mapping[str, Any] = field(default_factory=dict)
    kind: ClassVar[str] = "features"

    def __post_init__(self) -> None:
        """Refuse shapes, norms and values that no set of features can have.

        Raises:
            MelboError: See `FeatureSet`.
        """
        m = len(self.V)
        if self.V.ndim != 2 or self.U.ndim != 2 or len(self.U) != m or self.alpha.shape != (m,):
            raise MelboError(
                f"got V {tuple(self.V.shape)}, U {tuple(self.U.shape)}, "
                f"alpha {tuple(self.alpha.shape)}: expected [m, d], [m, d'] and [m]"
            )
        for name, rows in (("V", self.V), ("U", self.U)):
            off = (rows.float().norm(dim=-1) - 1).abs()
            if not (off < 1e-3).all():
                worst = int(torch.nan_to_num(off, nan=torch.inf).argmax())
                raise MelboError(
                    f"row {worst} of {name} has norm {rows[worst].norm():.4g}, expected 1: "
                    "normalise the rows; the scale is kept apart"
                )
        if not torch.isfinite(self.alpha).all():
            raise MelboError("alpha holds values that are not finite")
        if not self.scale > 0:
            raise MelboError(f"scale is {self.scale}: expected a positive number")

    def __len__(self) -> int:
        """Number of features m."""
        return len(self.V)

    @property
    def placement(self) -> Placement:
        """Layers and tokens at which the features were fitted."""
        return replace(self.provenance.placement, source=self.source, target=self.target)

    def take(self, rows: Tensor) -> Self:
        """See `Steerable.take`; keeps the result of `melbo.fit_seeds` for each feature."""
        taken = self.replaced(self.V[rows], self.U[rows], self.alpha[rows])
        if "stability" not in self.meta:
            return taken
        found = self.meta["stability"]
        return taken.with_meta(
            stability={**found, "cosine": [found["cosine"][i] for i in rows.tolist()]}
        )

    def replaced(self, V: Tensor, U: Tensor, alpha: Tensor) -> Self:
        """Other features of the same kind, placement and scale.

        Entries of ``meta`` that are about single features are left out.

        Args:
            V: Source directions ``[m, d_source]``.
            U: Target directions ``[m, d_target]``.
            alpha: Strengths ``[m]``.
        """
        meta = {k: v for k, v in self.meta.items() if k != "stability"}
        return replace(self, V=V, U=U, alpha=alpha, meta=meta)

    def edit(
        self,
        which: Tensor | None = None,
        strength: float | Tensor = 1.0,
        where: Where = "all",
    ) -> Edit:
        """See `Steerable.edit`; adds strength·R·v at the tokens that the fit steered."""
        self.check_edit(which, strength)
        if isinstance(strength, Tensor):
            strength = strength.to(self.V)[:, None]
        vectors = strength * self.scale * (self.V[0] if which is None else self.V[which])
        placement = self.placement
        return Add(self.source, vectors, where, placement.skip_first, placement.last)

    def averaged(self, how: str) -> Self:
        """Average of the features, as a set of one at the same scale.

        U is averaged as V is, and α by its mean.

        Args:
            how: ``"mean"`` takes the mean of the v's, renormalised. ``"svd"`` takes their leading
                right singular vector, with the sign of the mean; that sign means nothing, so look
                at both.

        Raises:
            MelboError: ``how`` is neither.
        """
        averages = {"mean": mean_direction, "svd": main_direction}
        if how not in averages:
            raise MelboError(f"how is {how!r}: expected 'mean' or 'svd'")
        V, U = (averages[how](rows)[None] for rows in (self.V, self.U))
        one = self.replaced(V, U, self.alpha.mean()[None])
        return one.with_meta(averaged={"how": how, "features": len(self)})

    def join(self, other: Self) -> Self:
        """See `Steerable.join`; meta is that of the first set.

        Raises:
            MelboError: The sets steer in different ways, or are of different models.
        """
        self._require_alike(other)
        V, U, alpha = (
            torch.cat([getattr(self, name), getattr(other, name).to(getattr(self, name))])
            for name in _TENSORS
        )
        return self.replaced(V, U, alpha)

    def _require_alike(self, other: "FeatureSet") -> None:
        """Refuse a set that cannot share scale, layers, tokens and matrices with this one.

        A set that was made by hand may say nothing of its model.

        Raises:
            MelboError: There is such a difference; names all of them.
        """
        one, two = (
            {
                "kind": each.kind,
                "scale": f"{each.scale:.6g}",
                "source": each.source,
                "target": each.target,
                "skip_first": each.placement.skip_first,
                "last tokens": each.placement.last or "all",
                "width": (each.V.shape[1], each.U.shape[1]),
                "matrices": [site.name for site in each.provenance.sites],
                "model": each.provenance.model_sha256,
            }
            for each in (self, other)
        )
        if two["model"] is None:
            one["model"] = None
        differ = [f"{name} {one[name]} and {two[name]}" for name in one if one[name] != two[name]]
        if differ:
            raise MelboError(
                f"these features cannot share one set ({'; '.join(differ)}): generate with one "
                "set at a time, or with melbo.features.steerable.Mixed([one, other])"
            )

    def random(self, num: int, generator: torch.Generator) -> Self:
        """See `Steerable.random`; directions are uniform on the sphere.

        The effects of random directions are not known: U is random too, and α is zero.
        """
        V, U = (random_rows(num, rows.shape[1], generator).to(rows) for rows in (self.V, self.U))
        return self.replaced(V, U, torch.zeros(num).to(self.alpha))

    def with_meta(self, **more: Any) -> Self:
        """The same features with more entries in ``meta``."""
        return replace(self, meta={**self.meta, **more})

    def plot(self) -> "Picture":
        """See `Shown.plot`; strengths, and the cosines of the features with each other."""
        canvas, (strengths, cosines) = panels(2, width=9)
        strengths.plot(self.alpha.float().cpu().numpy(), "o", ms=3)
        strengths.set(xlabel="feature", ylabel="α, strength in the transcoder")
        whole_numbers(strengths.xaxis, cosines.xaxis, cosines.yaxis)
        rows = self.canonical.float().cpu()
        image = cosines.imshow((rows @ rows.T).numpy(), cmap="RdBu_r", vmin=-1, vmax=1)
        cosines.set(xlabel="feature", ylabel="feature", title="cosine of source directions")
        finished(canvas).colorbar(image, ax=cosines, shrink=0.8)
        return canvas

    def _table(self) -> Table:
        kind, model = self.kind if len(self) != 1 else self.kind.rstrip("s"), self.provenance
        of = f" of {model.model_name}" if model.model_name else ""
        title = (
            f"{len(self)} {kind}{of}, layer {self.source} to {self.target}, "
            f"R = {number(self.scale)}"
        )
        again = f"found again by {self._seeds} seeds, cosine" if self._seeds else ""
        headings = {"feature": "feature", "alpha": "α", "found_again": again}
        return Table.of(title, self._records(), headings)

    @property
    def _seeds(self) -> int:
        """Number of fits that `melbo.fit_seeds` has compared; 0 where it did not make these."""
        return int(self.meta.get("stability", {}).get("seeds", 0))

    def _records(self) -> Sequence[Record]:
        """Features."""
        records = [{"feature": i, "alpha": alpha} for i, alpha in enumerate(self.alpha.tolist())]
        if not self._seeds:
            return records
        again = self.meta["stability"]["cosine"]
        return [{**r, "found_again": c} for r, c in zip(records, again, strict=True)]

    @property
    def canonical(self) -> Tensor:
        """Form of V ``[m, d]`` in which equal features have equal rows."""
        return self.V

    def check_model(self, lm: LanguageModel) -> None:
        """See `Steerable.check_model`; also refuses a model of another width.

        Raises:
            MelboError: Other weights or another width.
        """
        super().check_model(lm)
        self.check_width(lm)

    def check_width(self, lm: LanguageModel) -> None:
        """Refuse a model of another width.

        Raises:
            MelboError: The widths differ.
        """
        if self.V.shape[1] != lm.width:
            raise MelboError(
                f"these features have width {self.V.shape[1]}, {lm.name} has {lm.width}: "
                "load the model they belong to"
            )

    def save(self, folder: str | Path, force: bool = False) -> Path:
        """Write ``features.safetensors``, then ``run.json``: a folder that holds it is whole.

        Args:
            folder: The run folder.
            force: Whether a run that is there already may be replaced.

        Raises:
            MelboError: The folder holds a run already and ``force`` is not set.
        """
        run = {
            "kind": self.kind,
            "scale": self.scale,
            "source": self.source,
            "target": self.target,
            **self.meta,
        }
        return write_run(Path(folder), run, {name: getattr(self, name) for name in _TENSORS}, force)

    @classmethod
    def load(cls, folder: str | Path, lm: LanguageModel | None = None) -> Self:
        """Read a run folder; nothing in it is ever unpickled.

        Args:
            folder: The run folder.
            lm: Model that the features have to be of, if given.

        Raises:
            MelboError: The run is missing, truncated, of another schema, or of another model.
        """
        run = read_run(folder, cls.kind)
        V, U, alpha = read_tensors(folder, _TENSORS)
        meta = {k: v for k, v in run.items() if k not in _FIELDS}
        features = cls(V, U, alpha, run["scale"], run["source"], run["target"], meta)
        if lm is not None:
            features.check_model(lm)
        return features
