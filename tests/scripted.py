"""An elicitor whose replies are written beforehand, and a tiny model that says plain words."""

import random
from dataclasses import dataclass, field

import torch
from cases import tiny_model

from melbo.discovery.candidates import as_table, pick

TEXTS = [
    f"{a} {b}"
    for a in ("red", "yes", "you", "cat")
    for b in ("dog", "sun", "and", "he", "she", "it")
]
PLAIN = ("is", "a", "and", "he", "she", "it", "you", "yes")
PLANTED = ("red", "cat", "sun")


@dataclass(frozen=True)
class Scripted:
    """Candidates that say plain words; every third one says planted words among them."""

    which: tuple[int, ...]
    kind: str = "script"

    def __len__(self):
        return len(self.which)

    def only(self, which):
        return Scripted(pick(self.which, which), self.kind)

    def describe(self, i):
        return {"kind": self.kind, "text": "", "number": self.which[i]}

    def replies(self, lm, prompts, max_new_tokens, *, unsteered, progress):
        said = []
        for text in prompts.texts:
            for i in self.which:
                draw = random.Random(f"{text} {i}")
                words = [draw.choice(PLAIN) for _ in range(max_new_tokens - 3)]
                words += PLANTED if i % 3 == 0 else [draw.choice(PLAIN) for _ in range(3)]
                draw.shuffle(words)
                said.append(lm.tokenizer(" ".join(words), add_special_tokens=False)["input_ids"])
        return as_table(lm, prompts, said, max_new_tokens, unsteered)


@dataclass(frozen=True)
class Script:
    kind: str = "script"
    name: str = field(default="script", init=False)
    description: str = field(default="written beforehand", init=False)

    def candidates(self, lm, prompts, num, seed, progress):
        return Scripted(tuple(range(num)), self.kind), 0.0


def speaker():
    """A tiny model that says plain words, and planted ones rarely."""
    lm = tiny_model("llama", torch.float32)
    bias = torch.zeros(len(lm.tokenizer))
    for words, value in ((PLAIN, 4.0), (PLANTED, 1.0)):
        bias[lm.tokenizer(" ".join(words), add_special_tokens=False)["input_ids"]] = value
    lm.model.lm_head.bias = torch.nn.Parameter(bias, requires_grad=False)
    return lm
