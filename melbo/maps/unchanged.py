"""A map's model: the same as when the map was made, with hooks that can be replayed."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from melbo.errors import MelboError
from melbo.models.changes import Snapshot, own_hooks, set_aside_hooks
from melbo.models.edits import InputHook
from melbo.models.language_model import LanguageModel, first_line
from melbo.models.replay import Slice


def snapshot(lm: LanguageModel, target: int) -> Snapshot:
    """State of all that a pass runs through up to a layer.

    Args:
        lm: The model.
        target: The layer.
    """
    return Snapshot([lm.model.get_input_embeddings(), *lm.blocks[:target]])


def same_pass(now: Slice, then: Slice) -> bool:
    """Tell whether two captures of the same prompts agree, up to what a device may do at random.

    Args:
        now: The one.
        then: The other.
    """
    real = now.mask.to(now.hidden.device)
    return _close(now.hidden[real], then.hidden[real]) and _close(
        now.output[real.to(now.output.device)], then.output[real.to(now.output.device)]
    )


def hooks_matter(modules: Sequence[nn.Module], capture: Callable[[], Slice]) -> bool:
    """Tell whether hooks change what a slice computes, or only look on.

    The unsteered stream and a perturbed one are tried, with hooks and without.

    Args:
        modules: Modules that may have hooks.
        capture: Captures the slice as the model is at the time.
    """
    now = capture()
    with set_aside_hooks(modules):
        bare = capture()
    if not same_pass(now, bare):
        return True
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(bare.hidden.shape, generator=generator).to(bare.hidden)
    size = bare.hidden.norm(dim=-1, keepdim=True) / 2
    stream = bare.hidden + size * noise / noise.norm(dim=-1, keepdim=True)
    real = bare.mask.to(bare.output.device)
    try:
        with torch.no_grad():
            hooked = replace(bare, around=now.around).replay(stream)
            with set_aside_hooks(modules):
                return not _close(hooked[real], bare.replay(stream)[real])
    # however a hook fails on a replay, it is one that matters
    except Exception:
        return True


def require_derivatives_of_edits(part: Slice, name: str) -> None:
    """Refuse derivatives through edits that are constants to them, though they see θ.

    The edit on the first block of a slice comes before θ is added, and sees none of it.

    Args:
        part: The slice.
        name: Name of the model.

    Raises:
        MelboError: There is such an edit on a later block.
    """
    for call in part.calls[1:]:
        for hook in own_hooks(call.block):
            if isinstance(hook, InputHook) and hook.partly_constant:
                at = call.index
                raise MelboError(
                    f"block {at} of {name} is under an edit (SARA) whose factors derivatives take "
                    "for constants, so those of this map would be wrong: ask for values alone, "
                    f"make the map outside the `with` block, or with a source of {at} or later"
                )


def _close(new: Tensor, old: Tensor) -> bool:
    """Tell whether two results are equal, up to what a device may do at random."""
    tolerance = 1e-5 if new.dtype in (torch.float32, torch.float64) else 2e-3
    return torch.equal(new, old) or bool((new - old).norm() <= tolerance * old.norm())


def check_hooks(part: Slice) -> None:
    """Refuse hooks on the blocks that do something else when these are replayed.

    Two copies of the prompts are tried, twice.

    Args:
        part: A slice of which some blocks have hooks.

    Raises:
        MelboError: They do.
    """
    remedy = "make the map without them, outside the `with` block if there is one"
    tolerance = 1e-4 if part.output.dtype in (torch.float32, torch.float64) else 3e-2
    truth = part.output.repeat(2, 1, 1)
    real = part.mask.repeat(2, 1).to(truth.device)
    for _ in range(2):
        try:
            with torch.no_grad():
                found = part.replay(part.hidden.repeat(2, 1, 1))
            off = ((found - truth)[real].norm() / truth[real].norm()).item()
        # a hook may fail in a way of its own; the user needs the one line
        except Exception as err:
            raise MelboError(
                f"hooks on the blocks fail when these are replayed "
                f"({type(err).__name__}: {first_line(err)}): {remedy}"
            ) from err
        if not off <= tolerance:
            raise MelboError(
                f"hooks on the blocks do something else when these are replayed "
                f"(states differ by {off:.1e}): {remedy}"
            )
