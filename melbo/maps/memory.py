"""Memory that passes through a map take, and the number of tokens that fits."""

from collections.abc import Callable

import psutil
import torch
from torch import Tensor


def tokens_that_fit(kept: float, device: torch.device) -> int:
    """Tokens per pass that fit in half of the free memory.

    Args:
        kept: Bytes that a token keeps for the backward pass.
        device: Device that the passes run on.
    """
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        free, most = torch.cuda.mem_get_info(device)[0] + unused, 65536
    else:
        free, most = psutil.virtual_memory().available, 1200
    return max(1, min(most, int(free / 2 / max(1, kept))))


def bytes_kept(fn: Callable[[Tensor], Tensor], theta: Tensor) -> int:
    """Bytes that a forward pass keeps for the backward pass.

    Args:
        fn: The pass, a function of perturbations.
        theta: The perturbations.
    """
    # bytes by address
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        # a graph that holds its own outputs is never freed
        return tensor.detach()

    theta = theta.detach().requires_grad_()
    noting = torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor)
    with torch.enable_grad(), noting:
        out = fn(theta)
    # held until here, so that no address is given out twice
    del out
    return sum(kept.values())
