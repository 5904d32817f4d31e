"""A TopK dictionary of the bundled model, trained on Python's documentation: quality and speed."""

import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from melbo import LanguageModel, MelboError, load
from melbo.dictionary import Contexts, Dictionary, Training, make
from melbo.dictionary import load as load_dictionary
from melbo.dictionary.origin import Origin
from melbo.dictionary.training_run import train_on_text
from melbo.evaluation.tables import markdown
from melbo.records import ResultLog, Row, environment
from research.dictionaries import RESULTS, TRAINED
from research.dictionaries.text import documents, split

VERSION = 1
ROWS = RESULTS / "trained.jsonl"
#: Share of the variance to be explained, and minutes that it may take on two cores.
EXPLAINED, MINUTES = 0.8, 20


@dataclass(frozen=True)
class Setting:
    """A dictionary to train.

    Attributes:
        layer: Layer of the bundled model.
        latents: Number of latents.
        k: Latents that are active at once.
        tokens: Number of tokens to train on.
        held_out: Contexts of held-out documents that it is measured on.
        seed: Random seed.
    """

    layer: int = 8
    latents: int = 4096
    k: int = 32
    tokens: int = 300_000
    held_out: int = 64
    seed: int = 0

    def describe(self) -> Row:
        """The setting as a row names it."""
        return {"version": VERSION, **asdict(self)}

    @property
    def folder(self) -> Path:
        """Folder of the dictionary unless told otherwise."""
        return TRAINED / f"layer-{self.layer}"

    def measure(self, folder: Path) -> Row:
        """Train the dictionary, save it, and measure it on whole documents that it never saw.

        Args:
            folder: Folder of the dictionary.
        """
        begun = time.perf_counter()
        lm = load("smollm2", dtype="bfloat16")
        train_texts, held_texts = split(documents())
        contexts = Contexts.of(lm, train_texts)
        held = Contexts.of(lm, held_texts)
        order = torch.randperm(len(held), generator=torch.Generator().manual_seed(self.seed))
        held = held.take(order[: self.held_out])
        settings = Training(tokens=self.tokens)
        (trained,), course = train_on_text(
            lm,
            contexts,
            held,
            [self.layer],
            lambda: make("topk", lm.width, self.latents, self.k, self.seed),
            settings,
            self.seed,
        )
        trained.save(folder, force=True)
        learning = course.tokens / (course.seconds - course.reading)
        # of the dense products of a step: x·W_enc, and the gradient with the decoder
        done = 2 * 2 * lm.width * self.latents * learning
        rates = {name: rate(settings.batch, lm.width, self.latents, name) for name in _PRECISIONS}
        return {
            **self.describe(),
            "training": asdict(settings),
            "documents": [len(train_texts), len(held_texts)],
            "text_tokens": contexts.rows,
            "quality": trained.metadata["held_out"],
            "dead_in_training": course.dead[0],
            "course": course.describe(),
            "learning_tokens_per_second": learning,
            "reading_tokens_per_second": course.tokens / course.reading,
            "products": {name: done / each for name, each in rates.items()},
            "rates": rates,
            "minutes": (time.perf_counter() - begun) / 60,
            "environment": environment(),
        }


def of_layer(lm: LanguageModel, folder: Path, layer: int) -> Dictionary:
    """Read a dictionary of a layer of a model.

    Args:
        lm: The model.
        folder: Its folder.
        layer: The layer.

    Raises:
        MelboError: There is no dictionary, or one of another model or layer.
    """
    if not folder.is_dir():
        raise MelboError(
            f"no dictionary in {folder}: "
            f"run `python -m research dictionary train --layer {layer}` first (minutes)"
        )
    dictionary, origin = load_dictionary(folder), Origin.read(folder)
    if (at := origin.check(dictionary, lm)) != layer:
        raise MelboError(f"{folder} is of layer {at}: give a dictionary of layer {layer}")
    return dictionary


_PRECISIONS = ("float32", "bfloat16")


def rate(rows: int, width: int, latents: int, precision: str, repeats: int = 10) -> float:
    """Best rate of a product of the encoder's shape on this machine, in operations a second.

    Args:
        rows: Rows of the batch.
        width: Width of the activations.
        latents: Number of latents.
        precision: Precision of the product.
        repeats: Number of repetitions.
    """
    x, W = torch.randn(rows, width), torch.randn(width, latents)
    best = float("inf")
    if precision == "bfloat16":
        x, W = x.bfloat16(), W.bfloat16()
    for _ in range(repeats):
        begun = time.perf_counter()
        x @ W
        best = min(best, time.perf_counter() - begun)
    return 2 * rows * width * latents / best


def page_tables() -> dict[str, str]:
    """Tables that pages may quote, by name, made from the committed rows."""
    rows = [row for row in ResultLog(ROWS).rows if row["version"] == VERSION]
    lines = [
        [
            f"layer {row['layer']}, {row['latents']} latents, k = {row['k']}",
            f"{row['course']['tokens']:,}",
            f"{row['quality']['variance_explained']:.1%}",
            f"{row['quality']['cross_entropy']['recovered']:.1%}",
            f"{row['quality']['dead']:.1%}",
            f"{row['quality']['gamma']:.3f}",
            f"{row['minutes']:.1f}",
            f"{row['reading_tokens_per_second']:,.0f}",
            f"{row['learning_tokens_per_second']:,.0f}",
            f"{row['products']['float32']:.0%}, {row['products']['bfloat16']:.0%}",
        ]
        for row in rows
    ]
    head = (
        "dictionary",
        "tokens",
        "variance explained",
        "cross-entropy recovered",
        "dead",
        "γ",
        "minutes",
        "tokens a second, model",
        "dictionary",
        "of the rate of float32, bfloat16 products",
    )
    return {"dictionaries-trained": markdown(head, lines)} if rows else {}
