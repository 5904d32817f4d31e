"""A set of features: directions, strengths and scale, and the folder it is kept in."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .bank import Bank
from .edit import Add, Where
from .errors import MelboError
from .geometry import main_direction, mean_direction
from .linalg import random_rows
from .model import LanguageModel

SCHEMA = 1
_TENSORS = "features.safetensors"
_RUN = "run.json"
_PROMPTS = {"texts", "tokens", "kind", "system"}
_DERIVED = ("ranking.json", "completions.jsonl", "report.html", "selection.jsonl", "selection.json")


@dataclass(frozen=True)
class FeatureSet(Bank):
    """m features: what to add at the source layer, what it does at the target layer, how strongly.

    Attributes:
        V: Source directions ``[m, d_source]``, unit rows.
        U: Target directions ``[m, d_target]``, unit rows.
        alpha: Strengths ``[m]``.
        scale: R: strength 1 adds R·v.
        source: Layer (``hidden_states`` index) that V is added to.
        target: Layer that U was read at.
        meta: Where it comes from: model, map, method, seed, history, versions (JSON-able).

    Raises:
        MelboError: Shapes that do not fit, rows that are not of unit norm, values that are not finite, R ≤ 0.
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
        """Check what every user of a feature set relies on."""
        m = len(self.V)
        if self.V.ndim != 2 or self.U.ndim != 2 or len(self.U) != m or self.alpha.shape != (m,):
            raise MelboError(
                f"got V {tuple(self.V.shape)}, U {tuple(self.U.shape)}, alpha {tuple(self.alpha.shape)}: expected [m, d], [m, d'] and [m]"
            )
        for name, rows in (("V", self.V), ("U", self.U)):
            off = (rows.float().norm(dim=-1) - 1).abs()
            if not (off < 1e-3).all():
                worst = int(torch.nan_to_num(off, nan=torch.inf).argmax())
                raise MelboError(f"row {worst} of {name} has norm {rows[worst].norm():.4g}, expected 1: normalise the rows; the scale is kept apart")
        if not torch.isfinite(self.alpha).all():
            raise MelboError("alpha holds values that are not finite")
        if not self.scale > 0:
            raise MelboError(f"scale is {self.scale}: expected a positive number")

    def __len__(self) -> int:
        """Number of features m."""
        return len(self.V)

    def take(self, rows: Tensor) -> Self:
        """See `Bank.take`; what `melbo.fit_seeds` has found of each feature goes with it."""
        taken = self.replaced(self.V[rows], self.U[rows], self.alpha[rows])
        if "stability" not in self.meta:
            return taken
        found = self.meta["stability"]
        return taken.with_meta(stability={**found, "cosine": [found["cosine"][i] for i in rows.tolist()]})

    def replaced(self, V: Tensor, U: Tensor, alpha: Tensor) -> Self:
        """Other features of the same kind, place and scale; what is known of each of these is left out."""
        meta = {k: v for k, v in self.meta.items() if k != "stability"}
        return replace(self, V=V, U=U, alpha=alpha, meta=meta)

    def edit(self, which: Tensor | None = None, strength: float | Tensor = 1.0, where: Where = "all") -> Add:
        """See `Bank.edit`: adds strength·R·v at the tokens that the fit steered."""
        self.check_edit(which, strength)
        if isinstance(strength, Tensor):
            strength = strength.to(self.V)[:, None]
        vectors = strength * self.scale * (self.V[0] if which is None else self.V[which])
        fitted = self.meta.get("map", {})
        last = fitted["target_tokens"] if fitted.get("positions") == "target" else None
        return Add(self.source, vectors, where, bool(fitted.get("skip_first", False)), last)

    def merged(self, how: str) -> "FeatureSet":
        """What the features have in common, as a set of one at the same scale.

        ``"mean"``: the mean of the v's, renormalised. ``"svd"``: their leading right singular vector, whose sign means nothing: look at both (its
        own is that of the mean). U is merged the same way, α averaged.

        Raises:
            MelboError: Another ``how``.
        """
        ways = {"mean": mean_direction, "svd": main_direction}
        if how not in ways:
            raise MelboError(f"how is {how!r}: expected 'mean' or 'svd'")
        merge = ways[how]
        merged = {"how": how, "features": len(self)}
        return self.replaced(merge(self.V)[None], merge(self.U)[None], self.alpha.mean()[None]).with_meta(merged=merged)

    def join(self, other: "FeatureSet") -> Self:
        """See `Bank.join`; scale, place and meta are those of the first."""
        V, U, alpha = (torch.cat([getattr(self, name), getattr(other, name).to(getattr(self, name))]) for name in ("V", "U", "alpha"))
        return self.replaced(V, U, alpha)

    def random(self, num: int, generator: torch.Generator) -> "FeatureSet":
        """See `Bank.random`: directions uniform on the sphere. Nothing is known of what they do: U is random too, α zero."""
        V, U = (random_rows(num, rows.shape[1], generator).to(rows) for rows in (self.V, self.U))
        return self.replaced(V, U, torch.zeros(num).to(self.alpha))

    def with_meta(self, **more: Any) -> Self:
        """The same features with more said about where they come from."""
        return replace(self, meta={**self.meta, **more})

    @property
    def canonical(self) -> Tensor:
        """V ``[m, d]``, the same for features that are the same."""
        return self.V

    def check_model(self, lm: LanguageModel) -> None:
        """See `Bank.check_model`; also the width."""
        super().check_model(lm)
        self.check_width(lm)

    def check_width(self, lm: LanguageModel) -> None:
        """Refuse a model of another width.

        Raises:
            MelboError: It is.
        """
        if self.V.shape[1] != lm.width:
            raise MelboError(f"these features have width {self.V.shape[1]}, {lm.name} has {lm.width}: load the model they belong to")

    def save(self, folder: str | Path, force: bool = False) -> Path:
        """Write ``features.safetensors`` and ``run.json``; the second last, so that a folder with it is whole.

        Raises:
            MelboError: The folder holds a run already and ``force`` is not set.
        """
        run = {"kind": self.kind, "scale": self.scale, "source": self.source, "target": self.target, **self.meta}
        return write_run(Path(folder), run, {name: getattr(self, name) for name in ("V", "U", "alpha")}, force)

    @classmethod
    def load(cls, folder: str | Path, lm: LanguageModel | None = None) -> Self:
        """Read a run folder; nothing in it is ever unpickled.

        Args:
            folder: Where it is.
            lm: If given, the model that it has to be of.

        Raises:
            MelboError: Missing, truncated, of another schema, or of another model.
        """
        folder = Path(folder)
        run = read_run(folder, cls.kind)
        try:
            with safe_open(folder / _TENSORS, "pt") as file:
                V, U, alpha = (file.get_tensor(name) for name in ("V", "U", "alpha"))
        except (OSError, SafetensorError) as err:
            raise MelboError(f"{folder / _TENSORS} cannot be read ({str(err).splitlines()[0]}): the run is incomplete, fit it again") from err
        meta = {k: v for k, v in run.items() if k not in ("schema", "kind", "scale", "source", "target")}
        bank = cls(V, U, alpha, run["scale"], run["source"], run["target"], meta)
        if lm is not None:
            bank.check_model(lm)
        return bank


def write_run(folder: Path, run: Mapping[str, Any], tensors: Mapping[str, Tensor], force: bool) -> Path:
    """Write a run folder: its tensors if it has any, then ``run.json``, so that a folder with it is whole.

    Raises:
        MelboError: The folder holds a run already and ``force`` is not set, or cannot be written.
    """
    content = to_json({"schema": SCHEMA, "kind": "features", **run})
    refuse_existing(folder, force)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as err:
        raise MelboError(f"cannot make the folder {folder} ({err.strerror}): give another one") from err
    whole = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    write_whole({**({folder / _TENSORS: safetensors.torch.save(whole)} if whole else {}), folder / _RUN: content})
    for name in _DERIVED if whole else (*_DERIVED, _TENSORS):  # they belong to what was there before
        (folder / name).unlink(missing_ok=True)
    return folder


def read_run(folder: str | Path, kind: str | None = None) -> dict[str, Any]:
    """``run.json`` of a run folder, of any kind or of this one (``"features"``, ``"adapters"``, ``"contrast"``).

    Raises:
        MelboError: Missing, truncated, of another schema or of another kind.
    """
    path = Path(folder) / _RUN
    if not path.is_file():
        raise MelboError(f"no run in {folder} (no {_RUN}): give a folder that `melbo fit` has written")
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as err:
        raise MelboError(f"{path} is truncated or not JSON ({err}): fit it again") from err
    schema = run.get("schema") if isinstance(run, dict) else None
    if schema != SCHEMA:
        raise MelboError(f"{path} has schema {schema!r}, this version of melbo reads {SCHEMA}: use the version that wrote it, or fit it again")
    found = run.setdefault("kind", "features")
    if kind is not None and found != kind:
        raise MelboError(f"{folder} holds a run of the kind {found!r}, expected {kind!r}: sample, chat and select take any")
    if found in ("features", "adapters"):
        missing = {"scale", "source", "target"} - run.keys()
        if missing:
            raise MelboError(f"{path} lacks {', '.join(sorted(missing))}: it is incomplete, fit it again")
        if not isinstance(run["scale"], (int, float)) or not all(isinstance(run[k], int) for k in ("source", "target")):
            raise MelboError(f"{path} does not hold what `melbo fit` writes (scale a number, source and target integers): fit it again")
    if found == "adapters" and not _are_sites(run.get("map")):
        raise MelboError(f"{path} does not say which matrices its adapters edit: it is incomplete, fit it again")
    fitted_on = run.get("map", {})
    prompts = fitted_on.get("prompts") if isinstance(fitted_on, dict) else fitted_on
    model = fitted_on.get("model") if isinstance(fitted_on, dict) else None
    if model is not None and not (isinstance(model, dict) and model.keys() >= {"name", "sha256"}):
        raise MelboError(f"{path} does not say which model it was made with: fit it again")
    if not isinstance(fitted_on, dict) or not (prompts is None or (isinstance(prompts, dict) and prompts.keys() >= _PROMPTS)):
        raise MelboError(f"{path} does not hold what `melbo fit` writes (a map with its prompts): fit it again")
    return run


def _are_sites(fitted_on: Any) -> bool:
    sites = fitted_on.get("sites") if isinstance(fitted_on, dict) else None
    return isinstance(sites, list) and all(isinstance(site, dict) and site.keys() == {"block", "name", "d_in", "d_out"} for site in sites)


def refuse_existing(folder: str | Path, force: bool, names: Sequence[str] = (_RUN, _TENSORS, *_DERIVED)) -> None:
    """Never overwrite a run, or what is left of one, without being told to; nor find out after the work that a folder cannot be made.

    Raises:
        MelboError: There is a run in ``folder`` and ``force`` is not set, or the folder cannot be made.
    """
    if not force and any((Path(folder) / name).exists() for name in names):
        raise MelboError(f"{folder} already holds {'a run' if _RUN in names else names[0]}: give another folder, or --force to replace it")
    there = next(p for p in (Path(folder), *Path(folder).absolute().parents) if p.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise MelboError(f"cannot make the folder {folder} ({there} is not a folder that can be written to): give another one")


def to_json(value: Any) -> bytes:
    """JSON of plain, finite values.

    Raises:
        MelboError: Others are among them.
    """
    try:
        return json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False).encode()
    except (TypeError, ValueError) as err:
        raise MelboError(f"a value is not finite or not plain and cannot be written as JSON ({err}): nothing was written") from err


def write_whole(files: Mapping[Path, bytes]) -> None:
    """Write files so that each is at any time either the old one or the whole new one, and none is replaced before all are on the disk.

    Raises:
        MelboError: They cannot be written; what was there before is untouched.
    """
    parts = {path: path.with_name(path.name + ".part") for path in files}
    try:
        for path, content in files.items():
            parts[path].write_bytes(content)
        for path, part in parts.items():
            os.replace(part, path)
    except OSError as err:
        for part in parts.values():
            part.unlink(missing_ok=True)
        raise MelboError(f"cannot write {err.filename} ({err.strerror}): free some space, or give a folder that can be written to") from err
