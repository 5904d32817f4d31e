"""What a completion is worth: how new, how likely, how repetitive; and the flag that follows."""

from collections.abc import Sequence
from typing import Literal

import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from torch import Tensor

from .generate import Completion, Completions
from .model import LanguageModel
from .progress import track
from .prompts import Prompts, pad_rows

Flag = Literal["active", "inert", "broken"]

#: A feature is inert when its replies share this much of their words (tf-idf cosine) with the unsteered ones.
INERT_SIMILARITY = 0.9
#: A reply is broken when more than this share of its 4-grams are repeats …
BROKEN_REPETITION = 0.3
#: … or when the unsteered model finds its tokens less likely than this on average (nats).
BROKEN_NLL = 4.0
#: Weight of the reply's mean negative log-likelihood in `novel_yet_fluent` (METHOD §5 (vi)).
NLL_WEIGHT = 0.15


def novelty(completions: Completions) -> list[float]:
    """1 − tf-idf cosine between each completion and the unsteered one to the same prompt; the vocabulary weights are this table's own."""
    rows = list(completions)
    words = TfidfVectorizer(token_pattern=r"(?u)\b\w+\b").fit_transform([c.text for c in rows] + ["word"])[:-1]  # never an empty vocabulary
    plain = {c.prompt: i for i, c in enumerate(rows) if c.kind == "unsteered"}
    return [1 - _cosine(words[i], words[plain[c.prompt]], c.text == rows[plain[c.prompt]].text) for i, c in enumerate(rows)]


def _cosine(a, b, same: bool) -> float:
    return 1.0 if same else float((a @ b.T).sum())


def repetition(tokens: Sequence[int], n: int = 4) -> float:
    """Share of a reply's n-grams that it has said before, 0 to 1; 0 for a reply shorter than n + 1 tokens."""
    grams = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if len(grams) > 1 else 0.0


def nll(lm: LanguageModel, prompts: Prompts, completions: Sequence[Completion], batch_size: int = 16, progress: bool = True) -> list[float]:
    """Mean negative log-likelihood of each completion's tokens under the unsteered model, given its prompt, in nats a token."""
    found = [0.0] * len(completions)
    order = sorted(range(len(completions)), key=lambda i: (len(prompts.tokens[completions[i].prompt]), len(completions[i].tokens)))
    with track(len(completions), "fluency", progress) as bar, torch.no_grad():
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            replies = [completions[i].tokens for i in batch]
            heads = [prompts.tokens[completions[i].prompt] for i in batch]
            # padded between prompt and nothing: on the left, so that every reply ends at the last column
            ids, mask = pad_rows([(*h, *r) for h, r in zip(heads, replies, strict=True)], lm.pad, side="left")
            longest = max(len(r) for r in replies)
            positions = (mask.long().cumsum(-1) - 1).clamp_min(0)
            logits = lm.model(
                input_ids=ids.to(lm.device),
                attention_mask=mask.long().to(lm.device),
                position_ids=positions.to(lm.device),
                use_cache=False,
                logits_to_keep=longest + 1,
            ).logits[:, :-1]
            wanted = ids[:, -longest:].to(logits.device)
            cost = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), wanted.flatten(), reduction="none").unflatten(0, wanted.shape)
            for row, i in enumerate(batch):
                found[i] = cost[row, longest - len(replies[row]) :].mean().item()
            bar.update(len(batch))
    return found


def novel_yet_fluent(novelty: float, nll: float) -> float:
    """Novelty less 0.15 × negative log-likelihood: says something else, and something the model would find sayable."""
    return novelty - NLL_WEIGHT * nll


def flag(novelty: Sequence[float], nll: Sequence[float], repetition: Sequence[float]) -> Flag:
    """What a feature does over several prompts: nothing (``inert``), damage (``broken``, on most prompts) or something (``active``)."""
    if sum(novelty) / len(novelty) <= 1 - INERT_SIMILARITY:
        return "inert"
    damaged = [n > BROKEN_NLL or r > BROKEN_REPETITION for n, r in zip(nll, repetition, strict=True)]
    return "broken" if sum(damaged) * 2 > len(damaged) else "active"


def kl(steered: Tensor, unsteered: Tensor) -> float:
    """KL(steered ‖ unsteered) of two next-token distributions given by logits ``[vocabulary]``, in nats."""
    p, q = steered.double().log_softmax(-1), unsteered.double().log_softmax(-1)
    return (p.exp() * (p - q)).sum().item()
