"""Logits along replies that are known already, all of one prompt, which is read once."""

from collections.abc import Sequence

import torch
from torch import Tensor

from melbo.models.decoding.shared_prefix import Prefix
from melbo.models.language_model import LanguageModel
from melbo.models.text.prompts import pad_rows


def logits_of_replies(
    lm: LanguageModel, ids: Tensor, prefix: Prefix | None, replies: Sequence[Sequence[int]]
) -> tuple[Tensor, Tensor, Tensor]:
    """Read replies to a prompt, each token with the logits that it was chosen by.

    Args:
        lm: The model.
        ids: The prompt ``[1, T]``.
        prefix: Cache and logits of the prompt; None to read it again with each reply.
        replies: The replies, none of them empty.

    Returns:
        Logits ``[n, T', vocabulary]``, the replies' tokens ``[n, T']`` and the mask of real ones.
    """
    said, mask = pad_rows(replies, lm.pad, side="right")
    said, mask = said.to(lm.device), mask.to(lm.device)
    prompt = ids.expand(len(said), -1)
    seen = torch.cat([torch.ones_like(prompt), mask.long()], 1)
    if prefix is None:
        whole = torch.cat([prompt, said], 1)
        logits = lm.model(input_ids=whole, attention_mask=seen, use_cache=False).logits
        logits = logits[:, ids.shape[1] - 1 : -1]
    else:
        logits = prefix.logits[:, None].expand(len(said), -1, -1)
        if said.shape[1] > 1:
            rest = lm.model(
                input_ids=said[:, :-1],
                attention_mask=seen[:, :-1],
                past_key_values=prefix.repeated(len(said)),
            )
            logits = torch.cat([logits, rest.logits], 1)
    return logits, said.to(logits.device), mask.to(logits.device)
