"""Trials of a model on a few tokens, once, as it is loaded."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig

from melbo.models.replay import Slice

if TYPE_CHECKING:
    from melbo.models.language_model import LanguageModel


@dataclass(frozen=True)
class Traits:
    """Properties of a model that a trial has shown.

    Attributes:
        cache: Whether replies in a batch are the same with its cache and without one.
        resumes: Whether they are if the cache is handed back to ``generate`` in between.
        left_padding: Whether a row replies the same with padding on its left.
        chunks: Whether a prompt that is read in parts, on its cache, is read the same.
    """

    cache: bool = True
    resumes: bool = True
    left_padding: bool = True
    chunks: bool = True


def lists_of_blocks(model: nn.Module, config: Any) -> dict[str, nn.ModuleList]:
    """Every list of as many modules as the configuration has layers, by its path.

    Args:
        model: The model.
        config: Configuration of its decoder.
    """
    lists = {n: m for n, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m)}
    for name in ("num_hidden_layers", "decoder_layers"):
        depth = getattr(config, name, None)
        found = {path: each for path, each in lists.items() if len(each) == depth}
        if found:
            return found
    return {}


def short_slice(lm: "LanguageModel", copies: int, length: int) -> Slice:
    """All blocks, on copies of a short prompt."""
    ids = torch.arange(1, length + 1).expand(copies, length)
    # the last token is padding, so that there is a mask to look at
    return lm.capture(ids, ids < length, 0, lm.depth)


def replay_error(lm: "LanguageModel") -> float:
    """Largest relative error, over layers, of a replay of two copies of a short prompt.

    It is nan where any of the errors is.
    """
    entering: list[Tensor] = []

    def note(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        entering.append(args[0] if args else kwargs["hidden_states"])

    handles = [b.register_forward_pre_hook(note, with_kwargs=True) for b in lm.blocks]
    try:
        one = short_slice(lm, 1, 4)
    finally:
        for handle in handles:
            handle.remove()
    errors = []
    with torch.no_grad():
        replayed = one.trace(one.hidden.repeat(2, 1, 1))
        for (_, hidden), truth in zip(replayed, [*entering[1:], one.output], strict=True):
            errors.append(_error(hidden[:, :3], truth[:, :3]))
    return max(errors, key=lambda error: float("inf") if error != error else error)


def plain_failure(lm: "LanguageModel") -> Exception | None:
    """Error with which a model fails on a short padded prompt by itself; None if it runs."""
    ids = torch.arange(1, 5)[None].to(lm.device)
    try:
        with torch.no_grad():
            lm.model(input_ids=ids, attention_mask=(ids < 4).long(), use_cache=False)
    # any architecture may fail in a way of its own
    except Exception as err:
        return err
    return None


def causal_error(lm: "LanguageModel") -> float:
    """Relative change of the states of earlier tokens when the last token is another one."""
    ids = torch.tensor([[1, 2, 3, 4, 5], [1, 2, 3, 4, 1]])
    real = torch.ones_like(ids[:1], dtype=torch.bool)
    one, two = (lm.capture(row[None], real, 0, lm.depth).output[:, :-1] for row in ids)
    return _error(two, one)


def find_traits(lm: "LanguageModel") -> Traits:
    """Try how a model replies; a failure of any kind counts as a difference.

    Args:
        lm: The model; one without ``generate`` never replies, and nothing is tried.
    """
    if not hasattr(lm.model, "generate"):
        return Traits()
    cache = _holds(_cache_error, lm, (1e-3, 0.2))
    resumes = cache and _holds(partial(_cache_error, resumed=True), lm, (1e-3, 0.2))
    padding = _holds(partial(_padding_error, cache=cache), lm, (1e-3, 5e-2))
    return Traits(cache, resumes, padding, cache and _holds(_chunk_error, lm, (1e-3, 0.2)))


def generate_plainly(
    lm: "LanguageModel", ids: Tensor, mask: Tensor, settings: dict[str, Any], **more: Any
) -> Any:
    """Call the model's own ``generate`` with the checkpoint's own settings set aside.

    Args:
        lm: The model.
        ids: Token ids ``[n, T]``.
        mask: Mask of real tokens ``[n, T]``.
        settings: Settings of ``generate``.
        more: Other arguments of ``generate``.
    """
    config = _config(pad_token_id=lm.pad, return_dict_in_generate=True, **settings)
    own = getattr(lm.model, "generation_config", None)
    lm.model.generation_config = _config()
    try:
        with torch.no_grad(), lm.contiguous_head():
            return lm.model.generate(
                input_ids=ids.to(lm.device),
                attention_mask=mask.long().to(lm.device),
                generation_config=config,
                **more,
            )
    finally:
        lm.model.generation_config = own


def _config(**settings: Any) -> GenerationConfig:
    config: GenerationConfig = GenerationConfig(**settings)  # type: ignore[no-untyped-call]  # transformers has no types here
    return config


def _holds(
    trial: Callable[["LanguageModel"], float], lm: "LanguageModel", tolerances: tuple[float, float]
) -> bool:
    """Tell whether a trial's error is small, in whichever precision."""
    try:
        return bool(trial(lm) < tolerances[0 if lm.exact else 1])
    # any architecture may fail in a way of its own
    except Exception:
        return False


def _cache_error(lm: "LanguageModel", resumed: bool = False) -> float:
    """Error of the logits of two equal rows that reply, or reply twice in a row on one cache."""
    ids = torch.tensor([_some_ids(lm)] * 2)
    out = _two_more(lm, ids, torch.ones_like(ids), True)
    found = [*out.logits]
    if resumed:
        ids = out.sequences
        out = _two_more(lm, ids, torch.ones_like(ids), True, past_key_values=out.past_key_values)
        found += out.logits
    with torch.no_grad():
        whole = lm.model(input_ids=out.sequences[:1], use_cache=False).logits
    logits = torch.stack(found, 1)
    return _error(logits, whole[:, 4:-1].expand_as(logits))


def _chunk_error(lm: "LanguageModel") -> float:
    """Error of the logits after a prompt that is read two tokens at a time."""
    ids = torch.tensor([_some_ids(lm)])
    settings = {"max_new_tokens": 1, "do_sample": False, "output_logits": True}
    out = generate_plainly(lm, ids, torch.ones_like(ids), settings | {"prefill_chunk_size": 2})
    with torch.no_grad():
        whole = lm.model(input_ids=ids.to(lm.device), use_cache=False).logits
    return _error(out.logits[0], whole[:, -1])


def _padding_error(lm: "LanguageModel", cache: bool) -> float:
    """Error of the logits of a row that has padding on its left."""
    some = _some_ids(lm)
    ids = torch.tensor([[lm.pad] * 3 + some[:4], some[:4] + some[:3]])
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    one = _two_more(lm, ids[:1, 3:], mask[:1, 3:], cache)
    two = _two_more(lm, ids, mask, cache)
    return max(_error(b[:1], a) for a, b in zip(one.logits, two.logits, strict=True))


def _some_ids(lm: "LanguageModel") -> list[int]:
    """Five token ids, none of them padding."""
    return [i for i in range(1, 7) if i != lm.pad][:5]


def _two_more(lm: "LanguageModel", ids: Tensor, mask: Tensor, cache: bool, **more: Any) -> Any:
    """Greedy replies of two tokens, with their logits."""
    settings = {"max_new_tokens": 2, "do_sample": False, "output_logits": True, "use_cache": cache}
    return generate_plainly(lm, ids, mask, settings, **more)


def _error(found: Tensor, truth: Tensor) -> float:
    error: float = ((found - truth).norm() / truth.norm()).item()
    return error
