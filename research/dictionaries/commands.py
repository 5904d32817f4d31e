"""Commands that measure sparse dictionaries."""

from pathlib import Path

import click

from melbo import load
from melbo.cli.options import folder
from melbo.records import ResultLog
from research.dictionaries import overlap as overlaps
from research.dictionaries import rival as rivals
from research.dictionaries import shrinkage as shrinkages
from research.dictionaries import trained
from research.dictionaries.overlap import Overlap


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
@click.option("--layer", default=trained.Setting.layer, help="Layer of the bundled model.")
@click.option(
    "--out",
    type=folder,
    show_default="runs/dictionaries/layer-LAYER",
    help="Folder of the dictionary.",
)
def train(layer: int, out: Path | None) -> None:
    """Train a TopK dictionary of the bundled model on Python's documentation.

    Nothing is trained again where the row and the dictionary are there already.
    """
    log, setting = ResultLog(trained.ROWS), trained.Setting(layer=layer)
    out = out or setting.folder
    known = log.of(setting.describe())
    if not known or not (out / "cfg.json").exists():
        row = setting.measure(out)
        if not known:
            log.add(row)
    row = log.of(setting.describe())[0]
    click.echo(
        f"variance explained {row['quality']['variance_explained']:.1%} "
        f"(at least {trained.EXPLAINED:.0%}), "
        f"{row['minutes']:.1f} minutes (at most {trained.MINUTES}), {out}"
    )


@dictionary.command()
def rival() -> None:
    """Train with SAELens too, on the same activations; needs an environment that has it."""
    for row in rivals.measure_all(ResultLog(rivals.ROWS)):
        click.echo(
            f"{row['trainer']} at {row['rate']:g}: variance explained "
            f"{row['variance_explained']:.1%}, {row['tokens_per_second']:.0f} tokens a second"
        )


@dictionary.command()
@click.option(
    "--dictionary",
    "at_source",
    type=folder,
    default=trained.Setting(layer=Overlap.source).folder,
    help="Dictionary of the layer that the transcoder's V is added at.",
)
@click.option(
    "--target", "at_target", type=folder, help="Dictionary of the layer that its U is read at."
)
def overlap(at_source: Path, at_target: Path | None) -> None:
    """Fit a transcoder of the bundled model, and hold its directions against dictionaries'."""
    lm = load("smollm2", dtype="float32")
    row = Overlap().measure(lm, ResultLog(overlaps.ROWS), at_source, at_target)
    for name, found in row["matches"].items():
        nulls = ", ".join(f"{null} {each['mean']:.3f}" for null, each in found["nulls"].items())
        click.echo(f"{name}: best |cos| {found['mean']:.3f} in the mean ({nulls})")
