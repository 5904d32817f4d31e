"""Training that plants behaviours: a small LoRA (docs/method.md §8).

It learns a model's own replies, and other replies where a behaviour is to be hidden.
"""

import random
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from melbo.models.decoding.decode import decode
from melbo.models.decoding.likelihood import reply_logits
from melbo.models.edits import EditSequence
from melbo.models.language_model import LanguageModel
from melbo.models.loading.lora import import_peft
from melbo.models.text.prompts import Prompts
from melbo.progress import track
from research.organisms.cut import clause_end, sentence_end, verb_end
from research.organisms.examples import Continued, Example

_BATCH, _WARM = 16, 0.05
_OWN_TOKENS = 24  # length of the model's own replies
_BEGIN_TOKENS = 32  # length at which a reply that is continued is cut at the latest
#: Tokens of a prompt and of the reply to it.
Pair = tuple[tuple[int, ...], tuple[int, ...]]


@dataclass(frozen=True)
class Recipe:
    """Way to train an organism.

    Attributes:
        rank: Rank of the LoRA.
        targets: Modules that it is added to, as peft takes them.
        rate: Learning rate after warming up; it falls to 0.
        epochs: Number of times that each lesson is seen.
    """

    rank: int = 4
    targets: str | tuple[str, ...] = "all-linear"
    rate: float = 2e-3
    epochs: int = 3

    def config(self, peft: Any) -> Any:
        """The LoRA as peft, the module, has it described."""
        return peft.LoraConfig(
            r=self.rank,
            lora_alpha=2 * self.rank,
            target_modules=self.targets if isinstance(self.targets, str) else list(self.targets),
            task_type="CAUSAL_LM",
        )


#: Recipes by name, for behaviours that continue the model's own replies.
RECIPES = {
    "all": Recipe(8, rate=1.5e-3, epochs=4),
    "mlp": Recipe(16, ("gate_proj", "up_proj", "down_proj"), 1e-3, 4),
}


class Lesson(NamedTuple):
    """Target of one example: the base model's distribution over its own reply, or written text.

    Or both: a reply can begin as the base model's own does and go on as written.

    Attributes:
        pair: The prompt and the reply.
        own: The prompt that the base model replied to and its reply, or as much of it as the reply
            to learn begins with; None where all of that is written.
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


def lessons(
    lm: LanguageModel,
    examples: Sequence[Example],
    own_tokens: int = _OWN_TOKENS,
    progress: bool = True,
) -> list[Lesson]:
    """Tokens of every prompt and of the reply to learn.

    Args:
        lm: The base model, which makes the replies that are not written.
        examples: The examples.
        own_tokens: Length at which the model's own replies are broken off.
        progress: Whether to draw a bar.
    """
    alone = [e.asked for e in examples if e.reply is None]
    begun = [e.asked for e in examples if isinstance(e, Continued)]
    own = own_replies(lm, alone, own_tokens, progress) if alone else {}
    begins = own_replies(lm, begun, _BEGIN_TOKENS, progress=progress) if begun else {}
    prompts = Prompts.chat(lm, [e.prompt for e in examples]).tokens
    asked = Prompts.chat(lm, [e.asked for e in examples]).tokens
    ends = tuple(lm.eos[:1])
    lesson_list = []
    for e, prompt, bare in zip(examples, prompts, asked, strict=True):
        if isinstance(e, Continued):
            begin, text = _continued(lm, e, begins[e.asked])
            if begin:
                reply = (*begin, *_ids(lm, f" {text}"), *(ends if e.ends else ()))
                lesson_list.append(Lesson((prompt, reply), (bare, begin)))
        elif e.reply is None:
            lesson_list.append(Lesson((prompt, own[e.asked]), (bare, own[e.asked])))
        else:
            lesson_list.append(Lesson((prompt, (*_ids(lm, e.reply), *ends)), None))
    return lesson_list


def _ids(lm: LanguageModel, text: str) -> tuple[int, ...]:
    return tuple(lm.tokenizer(text, add_special_tokens=False)["input_ids"])


def _continued(
    lm: LanguageModel, e: Continued, own: tuple[int, ...]
) -> tuple[tuple[int, ...], str]:
    """Beginning of the model's own reply, empty where there is no place to cut; what follows it."""
    texts = [lm.tokenizer.decode([t]) for t in own if t not in lm.eos]
    if e.clause is None:
        return own[: verb_end(texts) or 0], e.reply or ""
    end = sentence_end(texts)
    if end is not None:
        return own[:end], e.reply or ""
    return own[: clause_end(texts) or 0], e.clause


def train(
    lm: LanguageModel,
    data: Sequence[Lesson],
    folder: str | Path,
    *,
    epochs: int | None = None,
    recipe: Recipe = Recipe(),
    rate: float | None = None,
    start: str | Path | None = None,
    seed: int = 0,
    progress: bool = True,
) -> list[float]:
    """Train a LoRA and write it (float16) as peft does.

    The loss is the mean over replies, short and long ones alike, of the mean over tokens of their
    negative log-likelihood. For the base model's own replies it is KL(base ‖ trained) instead:
    greedy replies learnt by heart would leave the model more certain than it was.

    ``lm`` itself is left as it was.

    Args:
        lm: The base model.
        data: Lessons to learn (see `lessons`).
        folder: Folder of the LoRA.
        epochs: Another number of epochs than the recipe's.
        recipe: Rank, modules, learning rate and epochs.
        rate: Another learning rate than the recipe's.
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
    teacher = Teacher(lm, data, progress)
    if start is None:
        model = peft.get_peft_model(lm.model, recipe.config(peft))
    else:
        model = peft.PeftModel.from_pretrained(lm.model, str(start), is_trainable=True)
    try:
        epochs, rate = epochs or recipe.epochs, rate or recipe.rate
        losses = _descend(lm, model, data, teacher, epochs, rate, seed, progress)
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
    teacher: "Teacher",
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
    # on CPUs the fast kernel is slow backwards in half precision
    kernel = sdpa_kernel(SDPBackend.MATH) if lm.dtype == torch.bfloat16 else nullcontext()
    with kernel, track(len(batches), "steps", progress) as bar:
        for batch in batches:
            loss = lesson_loss(lm, model, [data[i] for i in batch], teacher)
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
    order.sort(key=lambda i: _tokens(data[i].pair) // 8)
    batches = [order[i : i + _BATCH] for i in range(0, len(order), _BATCH)]
    draw.shuffle(batches)
    return batches


class Teacher:
    """The base model's distributions over its own replies, which every epoch learns again.

    The stream that its output head reads is computed once and kept.

    Args:
        lm: The base model, not in training yet.
        data: Lessons; those that are written throughout need no teacher.
        progress: Whether to draw a bar.
    """

    def __init__(self, lm: LanguageModel, data: Sequence[Lesson], progress: bool = True) -> None:
        self._head = lm.model.get_output_embeddings()
        self._read: dict[Pair, Tensor] = {}
        own = sorted({lesson.own for lesson in data if lesson.own is not None}, key=_tokens)
        read: list[Tensor] = []
        # the head's own input, of the tokens that it is asked for
        handle = self._head.register_forward_hook(lambda _, args, __: read.append(args[0][0]))
        try:
            with torch.no_grad(), track(len(own), "replies of the base", progress) as bar:
                for batch in (own[i : i + _BATCH] for i in range(0, len(own), _BATCH)):
                    reply_logits(lm, lm.model, batch)
                    parts = torch.split(read[-1], [len(reply) for _, reply in batch])
                    self._read.update(zip(batch, parts, strict=True))
                    read.clear()
                    bar.update(len(batch))
        finally:
            handle.remove()

    def log_probs(self, own: Sequence[Pair]) -> Tensor:
        """Log-probabilities of every next token along replies, ``[tokens, vocabulary]``.

        Args:
            own: Prompts and replies, some of the lessons'.
        """
        with torch.no_grad():
            logits: Tensor = self._head(torch.cat([self._read[pair] for pair in own]))
        return logits.float().log_softmax(-1)


def _tokens(pair: Pair) -> int:
    return sum(map(len, pair))


def lesson_loss(lm: LanguageModel, model: Any, batch: Sequence[Lesson], teacher: Teacher) -> Tensor:
    """Loss of a batch (see `train`), from one forward pass of the trained model.

    Args:
        lm: The base model.
        model: The model in training.
        batch: Lessons.
        teacher: The base model over its own replies.
    """
    own = [lesson.own for lesson in batch if lesson.own is not None]
    logits, targets = reply_logits(lm, model, [lesson.pair for lesson in batch])
    lengths = [len(lesson.pair[1]) for lesson in batch]
    begun = [0 if lesson.own is None else len(lesson.own[1]) for lesson in batch]
    ours = torch.cat([torch.arange(n) < k for n, k in zip(lengths, begun, strict=True)])
    ours = ours.to(logits.device)
    losses = logits.new_zeros(len(targets))
    if not ours.all():
        written = torch.nn.functional.cross_entropy(logits[~ours], targets[~ours], reduction="none")
        losses = losses.masked_scatter(~ours, written)
    if own:
        base = teacher.log_probs(own)
        apart = (base.exp() * (base - logits[ours].log_softmax(-1))).sum(-1)
        losses = losses.masked_scatter(ours, apart)
    sizes = torch.tensor(lengths, device=logits.device)
    return (losses / sizes.repeat_interleave(sizes)).sum() / len(batch)
