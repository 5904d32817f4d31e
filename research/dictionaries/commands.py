"""Commands that measure sparse dictionaries."""

from pathlib import Path

import click

from melbo.records import ResultLog
from research.dictionaries import rival as rivals
from research.dictionaries import shrinkage as shrinkages
from research.dictionaries import trained


@click.group()
def dictionary() -> None:
    """Measure sparse dictionaries: on a model, beside SAELens' trainer, on known truth."""


@dictionary.command()
def shrinkage() -> None:
    """Train four architectures on sums of known directions; rows that are there are kept."""
    log = ResultLog(shrinkages.ROWS)
    for row in shrinkages.measure_all(log):
        click.echo(
            f"{row['kind']} λ {row['weight']} seed {row['seed']}: L0 {row['l0']:.2f}, "
            f"γ {row['gamma_centred']:.3f}, {row['seconds']:.0f} s"
        )


@dictionary.command()
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default="runs/dictionary",
    help="Folder of the dictionary.",
)
def train(out: Path) -> None:
    """Train a TopK dictionary of the bundled model on Python's documentation."""
    log, setting = ResultLog(trained.ROWS), trained.Setting()
    if not log.of(setting.describe()):
        log.add(setting.measure(out))
    row = log.of(setting.describe())[0]
    click.echo(
        f"variance explained {row['quality']['variance_explained']:.1%} "
        f"(at least {trained.EXPLAINED:.0%}), "
        f"{row['minutes']:.1f} minutes (at most {trained.MINUTES})"
    )


@dictionary.command()
def rival() -> None:
    """Train with SAELens too, on the same activations; needs an environment that has it."""
    for row in rivals.measure_all(ResultLog(rivals.ROWS)):
        click.echo(
            f"{row['trainer']} at {row['rate']:g}: variance explained "
            f"{row['variance_explained']:.1%}, {row['tokens_per_second']:.0f} tokens a second"
        )
