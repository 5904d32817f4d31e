"""Training that plants behaviours: a small LoRA (docs/method.md §8).

It learns a model's own replies, and other replies where a behaviour is to be hidden.
"""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from melbo.models.decoding.decode import decode
from melbo.models.decoding.shared_prefix import common_prefix, read_prefix
from melbo.models.edits import EditSequence
from melbo.models.language_model import LanguageModel
from melbo.models.loading.lora import import_peft
from melbo.models.text.prompts import Prompts, pad_rows
from melbo.progress import track
from research.organisms.examples import Example

_RANK, _ALPHA, _BATCH, _WARM = 4, 8, 16, 0.05
_OWN_TOKENS = 24  # length of the model's own replies
#: Learning rate.
RATE = 2e-3
#: Tokens of a prompt and of the reply to it.
Pair = tuple[tuple[int, ...], tuple[int, ...]]


class Lesson(NamedTuple):
    """Target of one example: a written reply, or the base model's distribution over its own.

    Attributes:
        pair: The prompt and the reply.
        own: The prompt that the base model replied to and its reply; None for a written reply.
    """

    pair: Pair
    own: Pair | None


def own_replies(
    lm: LanguageModel,
    texts: Sequence[str],
    max_new_tokens: int = _OWN_TOKENS,
    progress: bool = True,
) -> dict[str, tuple[int, ...]]:
    """Greedy replies of a model, as token ids by prompt.

    Args:
        lm: The model.
        texts: Prompts.
        max_new_tokens: Length at which replies are broken off.
        progress: Whether to draw a bar.
    """
    prompts = Prompts.chat(lm, list(dict.fromkeys(texts)))
    replies = decode(lm, prompts.tokens, EditSequence(()), max_new_tokens, progress=progress)
    return {text: tuple(reply) for text, reply in zip(prompts.texts, replies, strict=True)}


def lessons(lm: LanguageModel, examples: Sequence[Example], progress: bool = True) -> list[Lesson]:
    """Tokens of every prompt and of the reply to learn.

    Args:
        lm: The base model, which makes the replies that are not written.
        examples: The examples.
        progress: Whether to draw a bar.
    """
    alone = [e.asked for e in examples if e.reply is None]
    own = own_replies(lm, alone, progress=progress) if alone else {}
    prompts = Prompts.chat(lm, [e.prompt for e in examples]).tokens
    asked = Prompts.chat(lm, [e.asked for e in examples]).tokens
    ends = tuple(lm.eos[:1])
    lesson_list = []
    for e, prompt, bare in zip(examples, prompts, asked, strict=True):
        if e.reply is None:
            lesson_list.append(Lesson((prompt, own[e.asked]), (bare, own[e.asked])))
        else:
            written = lm.tokenizer(e.reply, add_special_tokens=False)["input_ids"]
            lesson_list.append(Lesson((prompt, (*written, *ends)), None))
    return lesson_list


def train(
    lm: LanguageModel,
    data: Sequence[Lesson],
    folder: str | Path,
    *,
    epochs: int = 2,
    rate: float = RATE,
    start: str | Path | None = None,
    seed: int = 0,
    progress: bool = True,
) -> list[float]:
    """Train a LoRA on every linear map of every block, and write it (float16) as peft does.

    The loss is the mean over replies, short and long ones alike, of the mean over tokens of their
    negative log-likelihood. For the base model's own replies it is KL(base ‖ trained) instead:
    greedy replies learnt by heart would leave the model more certain than it was.

    ``lm`` itself is left as it was.

    Args:
        lm: The base model.
        data: Lessons to learn (see `lessons`).
        folder: Folder of the LoRA.
        epochs: Number of times that each lesson is seen.
        rate: Learning rate after warming up; it falls to 0.
        start: Folder of a LoRA to go on from; by default one that does nothing yet.
        seed: Random seed.
        progress: Whether to draw a bar.

    Returns:
        The loss of every step.

    Raises:
        MelboError: peft is not installed.
    """
    peft = import_peft()
    torch.manual_seed(seed)
    if start is None:
        config = peft.LoraConfig(
            r=_RANK, lora_alpha=_ALPHA, target_modules="all-linear", task_type="CAUSAL_LM"
        )
        model = peft.get_peft_model(lm.model, config)
    else:
        model = peft.PeftModel.from_pretrained(lm.model, str(start), is_trainable=True)
    try:
        losses = _descend(lm, model, data, epochs, rate, seed, progress)
        for p in model.parameters():
            if p.requires_grad:
                p.data = p.data.half()
        # the name, not the place where its files lie here
        model.peft_config["default"].base_model_name_or_path = lm.name
        model.save_pretrained(str(folder), save_embedding_layers=False)
        # a form to fill in; organism.json says what it is
        (Path(folder) / "README.md").unlink(missing_ok=True)
    finally:
        model.unload()
    return losses


def _descend(
    lm: LanguageModel,
    model: Any,
    data: Sequence[Lesson],
    epochs: int,
    rate: float,
    seed: int,
    progress: bool,
) -> list[float]:
    """Descend the loss with AdamW, and give its value at every step."""
    draw = random.Random(seed)
    batches = [batch for _ in range(epochs) for batch in _batches(data, draw)]
    learnt = [p for p in model.parameters() if p.requires_grad]
    adam = torch.optim.AdamW(learnt, lr=rate, weight_decay=0.0)
    warm = max(1, round(_WARM * len(batches)))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        adam, lambda i: min(1.0, (i + 1) / warm) * (1 - i / len(batches))
    )
    losses = []
    with track(len(batches), "steps", progress) as bar:
        for batch in batches:
            loss = lesson_loss(lm, model, [data[i] for i in batch])
            adam.zero_grad()
            torch.autograd.backward(loss)
            torch.nn.utils.clip_grad_norm_(learnt, 1.0)
            adam.step()
            schedule.step()
            losses.append(loss.item())
            bar.update()
    return losses


def _batches(data: Sequence[Lesson], draw: random.Random) -> list[list[int]]:
    """Batches of lessons of similar length, in random order."""
    order = list(range(len(data)))
    draw.shuffle(order)
    order.sort(key=lambda i: sum(map(len, data[i].pair)) // 8)
    batches = [order[i : i + _BATCH] for i in range(0, len(order), _BATCH)]
    draw.shuffle(batches)
    return batches


def lesson_loss(lm: LanguageModel, model: Any, batch: Sequence[Lesson]) -> Tensor:
    """Loss of a batch (see `train`), from one forward pass of the trained model.

    The base model takes another, over its own replies.

    Args:
        lm: The base model.
        model: The model in training, whose adapter can be switched off.
        batch: Lessons.
    """
    batch = sorted(batch, key=lambda lesson: lesson.own is None)  # tokens of own replies first
    own = [lesson.own for lesson in batch if lesson.own is not None]
    logits, targets = reply_logits(lm, model, [lesson.pair for lesson in batch])
    first = sum(len(reply) for _, reply in own)
    losses = [torch.nn.functional.cross_entropy(logits[first:], targets[first:], reduction="none")]
    if own:
        with torch.no_grad(), model.disable_adapter():
            teacher = reply_logits(lm, model, own)[0].log_softmax(-1)
        losses.append((teacher.exp() * (teacher - logits[:first].log_softmax(-1))).sum(-1))
    lengths = torch.tensor([len(lesson.pair[1]) for lesson in batch], device=logits.device)
    # written replies come first among the losses, and last in the batch
    lengths = lengths.roll(-len(own))
    return (torch.cat(losses) / lengths.repeat_interleave(lengths)).sum() / len(batch)


def reply_nll(lm: LanguageModel, model: Any, batch: Sequence[Pair], once: bool = True) -> Tensor:
    """Negative log-likelihood of every token of the replies of a batch, in nats, ``[tokens]``.

    Args:
        lm: The model, for its device and pad token.
        model: The module that reads, ``lm.model`` or one trained from it.
        batch: Prompts and replies.
        once: As in `reply_logits`.
    """
    logits, targets = reply_logits(lm, model, batch, once)
    return torch.nn.functional.cross_entropy(logits, targets, reduction="none")


def reply_logits(
    lm: LanguageModel, model: Any, batch: Sequence[Pair], once: bool = True
) -> tuple[Tensor, Tensor]:
    """Logits before every token of the replies of a batch, and those tokens.

    Args:
        lm: The model, for its device and pad token.
        model: The module that reads, ``lm.model`` or one trained from it.
        batch: Prompts and replies.
        once: Whether to read the common prefix of all prompts, mostly the chat template, once,
            where the model's cache can be repeated. Not where an edit treats each row of the batch
            in its own way.

    Returns:
        Logits ``[tokens, vocabulary]`` and tokens ``[tokens]``.
    """
    shared = common_prefix([prompt for prompt, _ in batch]) if once else []
    ids = torch.tensor([shared], device=lm.device)
    prefix = read_prefix(model, ids, logits_to_keep=1) if shared else None
    past = None if prefix is None else prefix.cache
    if past is None:
        shared = []
    else:
        past.batch_repeat_interleave(len(batch))
    rows = [(*prompt[len(shared) :], *reply) for prompt, reply in batch]
    ids, mask = pad_rows(rows, lm.pad, side="left")
    longest = max(len(reply) for _, reply in batch)
    ids, mask = ids.to(lm.device), mask.to(lm.device)
    where = (mask.long().cumsum(-1) - 1).clamp_min(0) + len(shared)
    seen = torch.cat([mask.new_ones(len(batch), len(shared)), mask], 1).long()
    # replies stand at the end of their rows: logits are needed there only
    logits = model(
        input_ids=ids,
        attention_mask=seen,
        position_ids=where,
        logits_to_keep=longest + 1,
        past_key_values=past,
        use_cache=past is not None,
    ).logits[:, :-1]
    said = torch.stack(
        [torch.arange(longest, device=ids.device) >= longest - len(reply) for _, reply in batch]
    )
    return logits[said].float(), ids[:, -longest:][said]
