"""SAELens' trainer on the same activations, and folders that go from one to the other.

SAELens is not a dependency of anything here. This runs in an environment that also has it.
"""

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from melbo import LanguageModel, load
from melbo.dictionary import Contexts, Dictionary, Training, make, measure, save, train
from melbo.dictionary import load as load_dictionary
from melbo.dictionary.activations import activations
from melbo.evaluation.tables import markdown
from melbo.progress import track
from melbo.records import ResultLog, Row, environment
from research.dictionaries import RESULTS
from research.dictionaries.text import documents, split

VERSION = 1
ROWS = RESULTS / "rival.jsonl"
OURS, THEIRS = "melbo", "sae-lens"


@dataclass(frozen=True)
class Bout:
    """A trainer with its learning rate, on activations that are the same for all.

    Attributes:
        trainer: The trainer.
        rate: Highest learning rate; it decays over the second half of the steps.
        layer: Layer of the bundled model.
        latents: Number of latents.
        k: Latents that are active at once.
        batch: Activations of a step.
        steps: Number of steps.
        different: Number of different activations.
        held_out: Number of activations of held-out documents.
    """

    trainer: str
    rate: float
    layer: int = 8
    latents: int = 4096
    k: int = 32
    batch: int = 2048
    steps: int = 60
    different: int = 60_000
    held_out: int = 10_000

    def describe(self) -> Row:
        """The bout as a row names it."""
        return {"version": VERSION, **asdict(self)}


#: SAELens' own rate, 3e-4, is for runs that are a thousand times as long.
BOUTS = (Bout(OURS, 5e-3), Bout(THEIRS, 5e-3), Bout(THEIRS, 2e-3))


def measure_all(log: ResultLog) -> Iterator[Row]:
    """Measure the bouts that have no row yet, one after the other in this process.

    Args:
        log: The rows.
    """
    left = [bout for bout in BOUTS if not log.of(bout.describe())]
    if not left:
        return
    lm = load("smollm2", dtype="bfloat16")
    first = left[0]
    texts = split(documents())
    rows, held = (
        read(lm, each, first.layer, number)
        for each, number in zip(texts, (first.different, first.held_out), strict=True)
    )
    for bout in left:
        row = {**bout.describe(), **run(bout, rows, held), "environment": environment()}
        log.add(row)
        yield row


def read(lm: LanguageModel, texts: list[str], layer: int, number: int) -> Tensor:
    """The first activations of texts, in an order of documents drawn at random ``[number, d]``."""
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(0)).tolist()
    found: list[Tensor] = []
    have = 0
    with track(number, "activations") as bar:
        for few in Contexts.of(lm, [texts[i] for i in order]).passes():
            found.append(activations(lm, few, [layer])[:, 0])
            have += len(found[-1])
            bar.update(len(found[-1]))
            if have >= number:
                break
    return torch.cat(found)[:number].float()


def batches(rows: Tensor, size: int) -> Iterator[Tensor]:
    """Batches ``[size, d]`` without end, the same for every trainer."""
    generator = torch.Generator().manual_seed(0)
    while True:
        order = torch.randperm(len(rows), generator=generator)
        for i in range(0, len(order) // size * size, size):
            yield rows[order[i : i + size]]


def run(bout: Bout, rows: Tensor, held: Tensor) -> Row:
    """Train, measure, and hand the dictionary to the other side.

    Args:
        bout: The trainer and its settings.
        rows: Activations to train on ``[n, d]``.
        held: Activations to measure on ``[n, d]``.
    """
    cpu, wall = time.process_time(), time.perf_counter()
    if bout.trainer == OURS:
        trained: Any = _ours(bout, rows)
    else:
        trained = _theirs(bout, rows)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    with TemporaryDirectory() as folder:
        if bout.trainer == OURS:
            dictionary, difference = trained, exported(trained, held[:1000], Path(folder))
        else:
            dictionary, difference = imported(trained, held[:1000], Path(folder))
    tokens = bout.batch * bout.steps
    return {
        **measure(dictionary, (held[i : i + 4096] for i in range(0, len(held), 4096))).describe(),
        "seconds": wall,
        "cpu_seconds": cpu,
        "tokens_per_second": tokens / wall,
        "tokens_per_cpu_second": tokens / cpu,
        "difference_across": difference,
    }


def _ours(bout: Bout, rows: Tensor) -> Dictionary:
    """Train with melbo."""
    dictionary = make("topk", rows.shape[1], bout.latents, bout.k)
    settings = Training(tokens=bout.batch * bout.steps, batch=bout.batch, rate=bout.rate)
    stream = (batch[:, None] for batch in batches(rows, bout.batch))
    train([dictionary], stream, rows[:8192, None], settings)
    return dictionary


def _theirs(bout: Bout, rows: Tensor) -> Any:
    """Train with SAELens, in float32, as it is set by itself but for the rate and its decay."""
    from sae_lens.config import SAETrainerConfig
    from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.training.sae_trainer import SAETrainer

    torch.manual_seed(0)
    config = TopKTrainingSAEConfig(
        d_in=rows.shape[1],
        d_sae=bout.latents,
        k=bout.k,
        normalize_activations="expected_average_only_in",
    )
    trainer = SAETrainer(
        SAETrainerConfig(
            total_training_samples=bout.batch * bout.steps,
            train_batch_size_samples=bout.batch,
            lr=bout.rate,
            lr_end=bout.rate / 10,
            lr_warm_up_steps=bout.steps // 20,
            lr_decay_steps=bout.steps // 2,
            n_batches_for_norm_estimate=4,
        ),
        TopKTrainingSAE(config),
        batches(rows, bout.batch),
    )
    return trainer.fit()


@torch.no_grad()
def exported(dictionary: Dictionary, x: Tensor, folder: Path) -> float:
    """Largest difference, over the largest value, of a dictionary saved here and loaded there.

    Args:
        dictionary: The dictionary.
        x: Activations ``[n, d]``.
        folder: Folder to save it to.
    """
    from sae_lens.saes.sae import SAE

    other: Any = SAE.load_from_disk(save(dictionary, folder / "ours"))
    return _difference(dictionary, other, x)


@torch.no_grad()
def imported(trained: Any, x: Tensor, folder: Path) -> tuple[Dictionary, float]:
    """A dictionary trained there, saved for use and loaded here, and the largest difference.

    Args:
        trained: The dictionary, of SAELens.
        x: Activations ``[n, d]``.
        folder: Folder to save it to.
    """
    from sae_lens.saes.sae import SAE

    trained.save_inference_model(str(folder / "theirs"))
    dictionary = load_dictionary(folder / "theirs")
    other: Any = SAE.load_from_disk(folder / "theirs")
    return dictionary, _difference(dictionary, other, x)


def _difference(dictionary: Dictionary, other: Any, x: Tensor) -> float:
    """Largest difference of reconstructions, over the largest value."""
    ours, theirs = dictionary(x), other(x)
    largest: float = ((ours - theirs).abs().max() / theirs.abs().max()).item()
    return largest


def page_tables() -> dict[str, str]:
    """Tables that pages may quote, by name, made from the committed rows."""
    rows = [row for row in ResultLog(ROWS).rows if row["version"] == VERSION]
    lines = [
        [
            row["trainer"],
            f"{row['rate']:g}",
            f"{row['variance_explained']:.1%}",
            f"{row['dead']:.1%}",
            f"{row['tokens_per_second']:,.0f}",
            f"{row['tokens_per_cpu_second']:,.0f}",
            f"{row['difference_across']:.0e}",
        ]
        for row in rows
    ]
    head = (
        "trainer",
        "rate",
        "variance explained",
        "dead",
        "tokens a second",
        "a second of one core",
        "difference across folders",
    )
    return {"dictionaries-rival": markdown(head, lines)} if rows else {}
