"""Tiny models whose weights accelerate keeps elsewhere."""

from accelerate import cpu_offload, disk_offload
from cases import TINY, tiny_tokenizer

import melbo


def offloaded(name, how, dtype, tmp_path=None):
    """The tiny model ``name``, with all weights in a map on the CPU or in files.

    Args:
        name: Its name.
        how: ``"cpu"``, ``"disk"``, or ``"mixed"``: the last two blocks on disk.
        dtype: Its precision.
        tmp_path: Folder for files.
    """
    model = TINY[name]().to(dtype).eval()
    if how == "cpu":
        cpu_offload(model, execution_device="cpu")
    elif how == "disk":
        disk_offload(model, tmp_path / "offload", execution_device="cpu")
    else:
        lm = melbo.LanguageModel(model, tiny_tokenizer())
        for i, block in enumerate(lm.blocks[-2:]):
            disk_offload(block, tmp_path / f"offload{i}", execution_device="cpu")
    return melbo.LanguageModel(model, tiny_tokenizer(), name=name)
