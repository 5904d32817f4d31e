"""Tiny models whose weights accelerate keeps elsewhere."""

from pathlib import Path

import torch
from accelerate import cpu_offload, disk_offload

import melbo
from research.tiny.architectures import TINY
from research.tiny.build import tiny_tokenizer


def offloaded(
    name: str, how: str, dtype: torch.dtype, folder: Path | None = None
) -> melbo.LanguageModel:
    """The tiny model of this name, with all weights in a map on the CPU or in files.

    Args:
        name: Its name.
        how: ``"cpu"``, ``"disk"``, or ``"mixed"``: the last two blocks on disk.
        dtype: Its precision.
        folder: Folder for files; not needed on the CPU.
    """
    model = TINY[name]().to(dtype).eval()
    if how == "cpu" or folder is None:
        cpu_offload(model, execution_device="cpu")
    elif how == "disk":
        disk_offload(model, folder / "offload", execution_device="cpu")
    else:
        lm = melbo.LanguageModel(model, tiny_tokenizer())
        for i, block in enumerate(lm.blocks[-2:]):
            disk_offload(block, folder / f"offload{i}", execution_device="cpu")
    # save_pretrained looks for weights elsewhere only where a map of devices says that there are
    model.hf_device_map = {"": "disk" if how == "disk" else "cpu"}
    return melbo.LanguageModel(model, tiny_tokenizer(), name=name)
