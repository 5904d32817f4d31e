"""The command that makes the supervised baselines."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from melbo.cli.options import (
    LOADING,
    READING,
    Options,
    as_prompts,
    causal_map,
    default_layers,
    file,
    load,
    loading_options,
    new_run_options,
    reading_options,
    take,
)
from melbo.cli.terminal import Command, next_step, tell
from melbo.discovery.contrastive import caa
from melbo.errors import MelboError
from melbo.evaluation.report import report
from melbo.features.prompt_pair import PromptPair
from melbo.features.run_folder import refuse_existing
from melbo.models.language_model import LanguageModel
from melbo.models.text.prompts import read_pairs


@click.command(cls=Command)
@click.argument("model")
@click.option(
    "--method",
    type=click.Choice(["caa", "actadd", "sara"]),
    required=True,
    help="Contrastive activation addition, activation addition, or scaling.",
)
@click.option(
    "--pairs",
    type=file,
    help="caa: file with a pair a line: with the behaviour, tab, without it.",
)
@click.option("--plus", help="actadd, sara: the prompt to move towards.")
@click.option("--minus", help="actadd, sara: the prompt to move away from.")
@click.option(
    "--layer",
    "layers",
    type=int,
    multiple=True,
    help="Layer to change; by default at 8/30 of the depth. May be given again (not for caa).",
)
@click.option(
    "--target",
    type=int,
    help="caa: layer at which the effect is measured; by default at 20/30 of the depth.",
)
@click.option(
    "--coefficient", default=1.0, help="Multiple of the difference, or of the scaling for sara."
)
@click.option(
    "--truncation",
    type=click.IntRange(min=1),
    help="sara: number of singular directions to keep at most.",
)
@reading_options
@new_run_options
@loading_options
def contrast(
    model: str,
    method: str,
    pairs: Path | None,
    plus: str | None,
    minus: str | None,
    out: Path,
    force: bool,
    **options: Any,
) -> None:
    """Make a supervised baseline for MODEL from contrasting prompts.

    The prompts differ in a behaviour; the run is sampled and talked to like any other.
    """
    texts = _contrasting_texts(method, pairs, plus, minus)
    refuse_existing(out, force)
    trust = options["trust_remote_code"]
    lm = load(model, take(options, *LOADING))
    if method == "caa":
        size = _make_direction(lm, texts, options, out, force)
    else:
        size = _make_pair(lm, method, texts, options, out, force)
    tell(f"{method}: {size}")
    click.echo(f"saved to {out}")
    next_step("sample", out, "--prompt", "TEXT", trust=trust)


def _contrasting_texts(
    method: str, pairs: Path | None, plus: str | None, minus: str | None
) -> tuple[list[str], list[str]]:
    """Prompts to move towards, and prompts to move away from.

    Raises:
        MelboError: Prompts are given in the form of another method; and as `read_pairs`.
    """
    if method == "caa" and pairs is not None and plus is None and minus is None:
        return read_pairs(pairs)
    if method != "caa" and pairs is None and plus is not None and minus is not None:
        return [plus], [minus]
    raise MelboError(
        "caa takes --pairs FILE, actadd and sara take --plus TEXT --minus TEXT, "
        "and each takes nothing of the other"
    )


def _make_direction(
    lm: LanguageModel,
    texts: tuple[list[str], list[str]],
    options: Options,
    out: Path,
    force: bool,
) -> str:
    """Save a run of one direction by contrastive activation addition; its size in words.

    Raises:
        MelboError: Options that the method does not have.
    """
    layers: Sequence[int] = options["layers"]
    if len(layers) > 1 or options["truncation"] is not None:
        raise MelboError("caa adds one vector at one layer: give --layer once, and no --truncation")
    reading = {name: options[name] for name in READING}
    plus, minus = (as_prompts(lm, side, reading) for side in texts)
    source = layers[0] if layers else None
    settings = {**reading, "source": source, "target": options["target"]}
    cmap = causal_map(lm, texts[1], settings)
    features = caa(cmap, plus, minus, options["coefficient"])
    features.save(out, force=force)
    report(out)
    share = features.scale / (cmap.source_norm or 1)
    return (
        f"norm {features.scale:.4g}, {share:.2f} of the stream's median norm at layer {cmap.source}"
    )


def _make_pair(
    lm: LanguageModel,
    method: str,
    texts: tuple[list[str], list[str]],
    options: Options,
    out: Path,
    force: bool,
) -> str:
    """Save a run of a pair of prompts; its size in words.

    Raises:
        MelboError: Options that the method does not have.
    """
    truncation = options["truncation"]
    if options["target"] is not None or (method == "actadd" and truncation is not None):
        raise MelboError("--target belongs to caa, --truncation to sara: leave it out")
    reading = {name: options[name] for name in READING}
    plus, minus = (as_prompts(lm, side, reading) for side in texts)
    layers = options["layers"] or default_layers(lm)[:1]
    pair = PromptPair.of(lm, method, plus, minus, layers, options["coefficient"], truncation)
    pair.save(out, force=force)
    return "; ".join(pair.sizes())
