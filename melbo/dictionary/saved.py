"""Dictionaries on disk, as folders that SAELens reads and writes.

A folder holds ``cfg.json`` and ``sae_weights.safetensors``. Of SAELens' architectures, standard,
topk and gated are read. What the format has no name for is written as one of these that has the
same latents and the same reconstruction.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from melbo.dictionary.base import Dictionary
from melbo.dictionary.gated import Gated
from melbo.dictionary.relu import ReLU
from melbo.dictionary.rescale_and_shift import RescaleAndShift
from melbo.dictionary.stepless import Stepless
from melbo.dictionary.top_k import TopK
from melbo.errors import MelboError
from melbo.records import refuse_existing, to_json, write_atomically

_CONFIG, _WEIGHTS = "cfg.json", "sae_weights.safetensors"
#: First version of SAELens whose ``cfg.json`` has the form written here.
_VERSION = "6.0.0"
#: SAELens' names of the tensors that each architecture has, with ours.
_SHARED = {"W_enc": "W_enc", "W_dec": "W_dec", "b_dec": "b_dec"}
_NAMES = {
    "standard": {**_SHARED, "b_enc": "b_enc"},
    "topk": {**_SHARED, "b_enc": "b_enc"},
    "gated": {**_SHARED, "b_gate": "b_enc", "r_mag": "r", "b_mag": "b_mag"},
}


def save(
    dictionary: Dictionary,
    folder: str | Path,
    metadata: Mapping[str, Any] | None = None,
    force: bool = False,
) -> Path:
    """Write a dictionary as a folder that SAELens reads, and return the folder.

    `RescaleAndShift` is written as a gated dictionary and `Stepless` as a ReLU dictionary with its
    factors in the encoder. Both encode and decode as before, but cannot be trained on as before.

    Args:
        dictionary: The dictionary.
        folder: The folder, made if it is not there.
        metadata: Values about the dictionary, JSON-able: SAELens looks for ``model_name`` and
            ``hook_name``, for instance.
        force: Whether a dictionary that is there already may be replaced.

    Raises:
        MelboError: A weight is not finite, a factor of `Stepless` is negative, the folder holds a
            dictionary already and ``force`` is not set, or it cannot be written.
    """
    folder = Path(folder)
    architecture, dictionary = _as_saelens(dictionary)
    tensors = {
        theirs: getattr(dictionary, ours).detach().cpu().contiguous()
        for theirs, ours in _NAMES[architecture].items()
    }
    _require_finite(tensors, "the dictionary")
    d, m = dictionary.W_enc.shape
    config = {
        "architecture": architecture,
        "d_in": d,
        "d_sae": m,
        "dtype": str(dictionary.W_enc.dtype).removeprefix("torch."),
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {**(metadata or {}), "sae_lens_version": _VERSION},
    }
    if isinstance(dictionary, TopK):
        config |= {"k": dictionary.k, "rescale_acts_by_decoder_norm": False}
    content = to_json(config)
    refuse_other(folder, force)
    folder.mkdir(parents=True, exist_ok=True)
    # the configuration comes last, so that a folder that holds it is whole
    write_atomically(
        {folder / _WEIGHTS: safetensors.torch.save(tensors), folder / _CONFIG: content}
    )
    return folder


def load(folder: str | Path) -> Dictionary:
    """Read a dictionary from a folder that `save` or SAELens has written, in float32.

    Latents and reconstructions are SAELens' own. Settings that change them (no b_dec before the
    encoder, TopK weighted by the norms of the decoder) are folded into the weights.

    Args:
        folder: The folder.

    Raises:
        MelboError: A file is missing or truncated, the architecture or a setting is not known here,
            or a tensor is missing, left over, of another shape or not finite.
    """
    folder = Path(folder)
    config = _read_config(folder / _CONFIG)
    architecture, k = _architecture(config, folder)
    d, m = _sizes(config, folder)
    tensors = _read_tensors(folder / _WEIGHTS, architecture)
    dictionary: Dictionary
    if architecture == "topk":
        dictionary = TopK(d, m, k)
    else:
        dictionary = Gated(d, m) if architecture == "gated" else ReLU(d, m)
    for theirs, ours in _NAMES[architecture].items():
        parameter, value = getattr(dictionary, ours), tensors[theirs]
        if value.shape != parameter.shape:
            raise MelboError(
                f"{folder / _WEIGHTS} has {theirs} of shape {list(value.shape)}: "
                f"expected {list(parameter.shape)}, as {_CONFIG} says; copy the folder again"
            )
        parameter.data = value.float()
    _fold(dictionary, config)
    return dictionary


def read_metadata(folder: str | Path) -> dict[str, Any]:
    """Values about a dictionary that its folder holds, whichever version of SAELens wrote it.

    Args:
        folder: The folder.

    Raises:
        MelboError: ``cfg.json`` is missing or truncated.
    """
    config = _read_config(Path(folder) / _CONFIG)
    # before version 6 they stood beside the settings
    return {**config, **(config.get("metadata") or {})}


def refuse_other(folder: str | Path, force: bool) -> None:
    """Refuse a folder that holds a dictionary already, before any work is done for it.

    Args:
        folder: The folder.
        force: Whether a dictionary that is there already may be replaced.
    """
    refuse_existing(folder, force, (_CONFIG, _WEIGHTS), "a dictionary")


def _as_saelens(dictionary: Dictionary) -> tuple[str, Dictionary]:
    """SAELens' name of the architecture, and the dictionary as one of these.

    Raises:
        MelboError: A factor of `Stepless` is negative, or the format has nothing of this kind.
    """
    names: dict[type, str] = {ReLU: "standard", TopK: "topk", Gated: "gated"}
    if type(dictionary) in names:
        return names[type(dictionary)], dictionary
    d, m = dictionary.W_enc.shape
    b, W = dictionary.b_enc.data, dictionary.W_enc.data
    changed: dict[str, Tensor]
    if isinstance(dictionary, RescaleAndShift):
        r = dictionary.r.data
        changed = {"r": r, "b_mag": r.exp() * b + dictionary.c.data}
        kind = "gated"
        same: Dictionary = Gated(d, m)
    elif isinstance(dictionary, Stepless):
        t = dictionary.t.data
        if (t < 0).any():
            raise MelboError(
                f"{int((t < 0).sum())} of {m} factors t are negative, and SAELens' format has no "
                "negative latents: set them to 0, or keep the state dict"
            )
        changed = {"W_enc": W * t, "b_enc": b * t}
        kind, same = "standard", ReLU(d, m)
    else:
        raise MelboError(
            f"a {type(dictionary).__name__} has no form in SAELens' format: keep its state dict"
        )
    unchanged = {name: getattr(dictionary, name).data for name in ("W_enc", "b_enc", *_DECODER)}
    for name, value in {**unchanged, **changed}.items():
        setattr(same, name, nn.Parameter(value.clone()))
    return kind, same


_DECODER = ("W_dec", "b_dec")


def _read_config(path: Path) -> dict[str, Any]:
    """Content of ``cfg.json``.

    Raises:
        MelboError: The file is missing, truncated or not an object.
    """
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as err:
        raise MelboError(
            f"no dictionary in {path.parent} ({path.name}: {err.strerror}): "
            "give a folder with cfg.json and sae_weights.safetensors"
        ) from err
    except (json.JSONDecodeError, UnicodeDecodeError) as err:
        raise MelboError(f"{path} is truncated or not JSON ({err}): copy it again") from err
    if not isinstance(config, dict):
        raise MelboError(f"{path} holds no object of settings: copy it again")
    return config


def _architecture(config: Mapping[str, Any], folder: Path) -> tuple[str, int]:
    """SAELens' name of the architecture, and its k (0 if it has none).

    Before version 6, a TopK dictionary was a standard one with another activation function.

    Raises:
        MelboError: The architecture, or a setting that changes what it computes, is not known here.
    """
    kind = config.get("architecture", "standard")
    activation = config.get("activation_fn", config.get("activation_fn_str", "relu"))
    k = config.get("k", (config.get("activation_fn_kwargs") or {}).get("k"))
    if kind == "standard" and activation == "topk":
        kind, activation = "topk", "relu"
    if kind not in _NAMES:
        raise MelboError(
            f"{folder} holds a dictionary of the architecture {kind!r}: "
            f"expected one of {', '.join(_NAMES)}"
        )
    if activation not in ("relu", "topk"):
        raise MelboError(f"{folder} has the activation function {activation!r}: expected 'relu'")
    normalised = config.get("normalize_activations")
    if normalised not in (None, False, "none"):
        raise MelboError(
            f"{folder} has normalize_activations {normalised!r}, which its weights do not hold: "
            "fold it into them with SAELens and save it again"
        )
    if kind == "topk" and (type(k) is not int or k < 1):
        raise MelboError(f"{folder / _CONFIG} has k {k!r}: expected 1 or more for a topk")
    return kind, k if kind == "topk" else 0


def _sizes(config: Mapping[str, Any], folder: Path) -> tuple[int, int]:
    """Width and number of latents.

    Raises:
        MelboError: One of them is missing or no size.
    """
    sizes = [config.get(name) for name in ("d_in", "d_sae")]
    for name, size in zip(("d_in", "d_sae"), sizes, strict=True):
        if type(size) is not int or size < 1:
            raise MelboError(
                f"{folder / _CONFIG} has {name} {size!r}: expected a size; copy it again"
            )
    return int(sizes[0] or 0), int(sizes[1] or 0)


def _read_tensors(path: Path, architecture: str) -> dict[str, Tensor]:
    """Tensors of a dictionary, by SAELens' names.

    Raises:
        MelboError: The file cannot be read, or tensors are missing, left over or not finite.
    """
    try:
        tensors = safetensors.torch.load_file(path)
    except (OSError, SafetensorError) as err:
        raise MelboError(
            f"{path} cannot be read ({str(err).splitlines()[0]}): copy the folder again"
        ) from err
    expected = set(_NAMES[architecture])
    for what, names in (("lacks", expected - set(tensors)), ("also has", set(tensors) - expected)):
        if names:
            raise MelboError(
                f"{path} {what} {', '.join(sorted(names))}: "
                f"expected {', '.join(sorted(expected))}, as a {architecture} has"
            )
    _require_finite(tensors, str(path))
    return tensors


def _require_finite(tensors: Mapping[str, Tensor], where: str) -> None:
    """Refuse weights that are not finite.

    Raises:
        MelboError: A value is not finite.
    """
    wrong = [name for name, value in tensors.items() if not torch.isfinite(value).all()]
    if wrong:
        raise MelboError(f"{where} has values in {wrong[0]} that are not finite: train it again")


@torch.no_grad()
def _fold(dictionary: Dictionary, config: Mapping[str, Any]) -> None:
    """Put settings that are not this package's into the weights, outputs unchanged."""
    if not config.get("apply_b_dec_to_input", True):
        # encoding (x − b_dec)·W + (b + b_dec·W) is encoding x·W + b
        offset = dictionary.b_dec @ dictionary.W_enc
        dictionary.b_enc.data += offset
        if isinstance(dictionary, Gated):
            dictionary.b_mag.data += dictionary.r.exp() * offset
    if config.get("rescale_acts_by_decoder_norm") and isinstance(dictionary, TopK):
        norms = dictionary.W_dec.norm(dim=1)
        dictionary.W_enc.data *= norms
        dictionary.b_enc.data *= norms
        dictionary.W_dec.data /= norms[:, None]
