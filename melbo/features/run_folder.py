"""The run folder: tensors in safetensors, everything else in JSON; nothing is ever unpickled."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from melbo import records
from melbo.errors import MelboError
from melbo.records import to_json, write_atomically

SCHEMA = 1
#: File with the tensors of a run.
TENSORS = "features.safetensors"
#: File with a run's account of itself.
RUN = "run.json"
#: Files that a report, a ranking and a selection write into a run folder.
REPORT = ("report.html",)
RANKED = ("ranking.json", "completions.jsonl", *REPORT)
SELECTED = ("selection.jsonl", "selection.json")
_DERIVED = (*RANKED, *SELECTED)
_OF_PROMPTS = {"texts", "tokens", "kind", "system"}
_OF_A_MODEL = {"name": str, "path": str, "dtype": str, "blocks": str, "bits": int, "sha256": str}
_OF_A_SITE = {"block", "name", "d_in", "d_out"}


def write_run(
    folder: Path, run: Mapping[str, Any], tensors: Mapping[str, Tensor], force: bool
) -> Path:
    """Write a run folder: its tensors if it has any, then ``run.json``.

    ``run.json`` comes last, so that a folder that holds it is whole. Files that were derived from
    an earlier run in the folder are removed.

    Args:
        folder: The folder, made if it is not there.
        run: Content of ``run.json``, JSON-able.
        tensors: Tensors by name.
        force: Whether a run that is there already may be replaced.

    Raises:
        MelboError: The folder holds a run already and ``force`` is not set, or cannot be written.
    """
    content = to_json({"schema": SCHEMA, "kind": "features", **run})
    refuse_existing(folder, force)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as err:
        raise MelboError(
            f"cannot make the folder {folder} ({err.strerror}): give another one"
        ) from err
    whole = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    files = {folder / TENSORS: safetensors.torch.save(whole)} if whole else {}
    write_atomically({**files, folder / RUN: content})
    for name in _DERIVED if whole else (*_DERIVED, TENSORS):
        (folder / name).unlink(missing_ok=True)
    return folder


def read_run(folder: str | Path, kind: str | None = None) -> dict[str, Any]:
    """Read a run folder's ``run.json``.

    Args:
        folder: The folder.
        kind: Kind that the run has to be of (``"features"``, ``"adapters"``, ``"contrast"``);
            any kind will do if left out.

    Raises:
        MelboError: The file is missing, truncated, of another schema or of another kind.
    """
    path = Path(folder) / RUN
    if not path.is_file():
        raise MelboError(
            f"no run in {folder} (no {RUN}): give a folder that `melbo fit` has written"
        )
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as err:
        raise MelboError(f"{path} is truncated or not JSON ({err}): fit it again") from err
    schema = run.get("schema") if isinstance(run, dict) else None
    if schema != SCHEMA:
        raise MelboError(
            f"{path} has schema {schema!r}, this version of melbo reads {SCHEMA}: "
            "use the version that wrote it, or fit it again"
        )
    found = run.setdefault("kind", "features")
    if kind is not None and found != kind:
        raise MelboError(
            f"{folder} holds a run of the kind {found!r}, expected {kind!r}: "
            "sample, chat and select take any"
        )
    _check_fields(run, path)
    _check_map(run.get("map", {}), path)
    return dict(run)


def read_tensors(folder: str | Path, names: tuple[str, ...]) -> tuple[Tensor, ...]:
    """Read tensors of a run folder.

    Args:
        folder: The folder.
        names: Names of the tensors.

    Raises:
        MelboError: The file is missing or truncated, or lacks one of them.
    """
    path = Path(folder) / TENSORS
    try:
        with safe_open(path, "pt") as file:
            return tuple(file.get_tensor(name) for name in names)
    except (OSError, SafetensorError) as err:
        raise MelboError(
            f"{path} cannot be read ({str(err).splitlines()[0]}): "
            "the run is incomplete, fit it again"
        ) from err


def refuse_existing(folder: str | Path, force: bool) -> None:
    """Refuse to overwrite a run, or the remains of one, before any work is done for it.

    Args:
        folder: Folder of the new run.
        force: Whether a run that is there already may be replaced.

    Raises:
        MelboError: There is a run in the folder and ``force`` is not set, or the folder cannot be
            made.
    """
    records.refuse_existing(folder, force, (RUN, TENSORS, *_DERIVED), "a run")


def _check_fields(run: Mapping[str, Any], path: Path) -> None:
    """Refuse features or adapters without scale and layers.

    Raises:
        MelboError: A field is missing, or of another type.
    """
    if run["kind"] not in ("features", "adapters"):
        return
    if missing := {"scale", "source", "target"} - run.keys():
        raise MelboError(
            f"{path} lacks {', '.join(sorted(missing))}: it is incomplete, fit it again"
        )
    if not isinstance(run["scale"], (int, float)) or not all(
        isinstance(run[k], int) for k in ("source", "target")
    ):
        raise MelboError(
            f"{path} does not hold what `melbo fit` writes "
            "(scale a number, source and target integers): fit it again"
        )
    fitted = run.get("map")
    sites = fitted.get("sites") if isinstance(fitted, dict) else None
    if run["kind"] == "adapters" and not (
        isinstance(sites, list)
        and all(isinstance(site, dict) and site.keys() == _OF_A_SITE for site in sites)
    ):
        raise MelboError(
            f"{path} does not say which matrices its adapters edit: it is incomplete, fit it again"
        )


def _check_map(fitted: Any, path: Path) -> None:
    """Refuse a description of a map whose model or prompts lack something.

    Raises:
        MelboError: A field is missing, or of another type.
    """
    if not isinstance(fitted, dict):
        raise MelboError(
            f"{path} does not hold what `melbo fit` writes (a map with its prompts): fit it again"
        )
    model, prompts = fitted.get("model"), fitted.get("prompts")
    if model is not None and not (isinstance(model, dict) and model.keys() >= {"name", "sha256"}):
        raise MelboError(f"{path} does not say which model it was made with: fit it again")
    if not all(
        isinstance((model or {}).get(key), (kind, type(None))) for key, kind in _OF_A_MODEL.items()
    ):
        raise MelboError(
            f"{path} does not hold what `melbo fit` writes "
            f"(of the model {', '.join(_OF_A_MODEL)}): fit it again"
        )
    if prompts is not None and not (isinstance(prompts, dict) and prompts.keys() >= _OF_PROMPTS):
        raise MelboError(
            f"{path} does not hold what `melbo fit` writes (a map with its prompts): fit it again"
        )
