"""Commands that use the features of a run."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import torch

from melbo.cli.chat import Chat
from melbo.cli.options import (
    READING,
    as_json_option,
    choice_options,
    contrast_option,
    file,
    load_for,
    prompt_options,
    read_prompts,
    reading_options,
    reply_length_option,
    run_argument,
    seed_option,
    strength_option,
    take,
    temperature_option,
    where_option,
)
from melbo.cli.pipeline import chosen, rank_run
from melbo.cli.reading import form_for
from melbo.cli.show import show_firings, show_ranking
from melbo.cli.terminal import Command, print_json
from melbo.errors import MelboError
from melbo.evaluation.rank import ORDERS
from melbo.evaluation.report import report as write_report
from melbo.evaluation.watch import watch as find_firings
from melbo.features.directions import FeatureSet
from melbo.features.generate import generate
from melbo.features.run_folder import RANKED, REPORT
from melbo.features.saved import load_steerable
from melbo.models.edits import Where
from melbo.models.text import built_in
from melbo.models.text.prompts import read_texts
from melbo.records import require_writable


@click.command(cls=Command)
@run_argument
@click.option(
    "--by",
    default="novel",
    type=click.Choice(list(ORDERS)),
    help="Score that the order goes by.",
)
@contrast_option
@click.option(
    "--validation",
    type=file,
    help="File with prompts to choose the order on, one a line; built-in ones by default.",
)
@click.option(
    "--held-out",
    type=file,
    help="File with prompts to report on, one a line; built-in ones by default.",
)
@click.option(
    "--controls",
    "num_controls",
    default=32,
    help="Number of random vectors to take through the same.",
)
@reply_length_option(32)
@click.option(
    "--batch-size",
    default=128,
    help="Number of replies decoded together; halved by itself when memory runs out.",
)
@click.option("--top", default=12, help="Number of features to print.")
@seed_option
@as_json_option
def rank(
    run: Path,
    model: str | None,
    validation: Path | None,
    held_out: Path | None,
    top: int,
    as_json: bool,
    **options: Any,
) -> None:
    """Order the features of RUN by their effect on new prompts.

    Random vectors of the same norm are taken through the same, as a control.
    """
    require_writable(run, RANKED)
    validation_texts = read_texts(validation) if validation else built_in.VALIDATION
    held_out_texts = read_texts(held_out) if held_out else built_in.HELD_OUT
    lm = load_for(run, model, options)
    ranking = rank_run(lm, run, validation_texts, held_out_texts, **options)
    if as_json:
        print_json(ranking.describe())
        return
    show_ranking(ranking, top)
    click.echo(f"\nRead everything:     {(run / 'report.html').resolve()}")


@click.command(cls=Command)
@run_argument
@prompt_options
@reading_options
@choice_options
@strength_option
@where_option
@temperature_option
@seed_option
@reply_length_option(64)
@as_json_option
def sample(
    run: Path,
    model: str | None,
    indices: Sequence[int],
    average: str | None,
    strength: float,
    where: Where,
    temperature: float,
    seed: int,
    max_new_tokens: int,
    as_json: bool,
    **options: Any,
) -> None:
    """Print replies of the model of RUN under its features.

    Prompts are read as those of the fit were, where the options do not say otherwise. The unsteered
    reply comes first; all features follow if none is chosen.
    """
    texts, reading = read_prompts(options), take(options, *READING)
    lm = load_for(run, model, options)
    features, names = chosen(load_steerable(run, lm), indices, average)
    fitted = features.provenance
    prompts = fitted.prompts_like(lm, texts, form_for(fitted, reading))
    torch.manual_seed(seed)
    replies = generate(
        lm,
        prompts,
        features,
        max_new_tokens=max_new_tokens,
        strength=strength,
        temperature=temperature,
        where=where,
    )
    for reply in replies:
        name = None if reply.feature is None else names[reply.feature]
        if as_json:
            row = {
                "prompt": reply.prompt_text,
                "feature": name,
                "strength": 0.0 if name is None else strength,
                "where": where,
                "temperature": temperature,
                "text": reply.text,
            }
            print_json(row)
            continue
        if name is None:
            label = click.style(f"\n{reply.prompt_text}\nunsteered", bold=True)
        else:
            label = click.style(f"feature {name}", fg="cyan")
        click.echo(f"{label}: {reply.text.strip() or '(empty reply)'}")


@click.command(cls=Command)
@run_argument
@reading_options
@choice_options
@strength_option
@where_option
@temperature_option
@seed_option
@reply_length_option(256)
def chat(
    run: Path,
    model: str | None,
    indices: Sequence[int],
    average: str | None,
    strength: float,
    where: Where,
    temperature: float,
    seed: int,
    max_new_tokens: int,
    **options: Any,
) -> None:
    """Talk to the model of RUN while a feature steers it.

    System message, template and beginning of replies are those of the fit, where the options do not
    say otherwise. No feature steers to begin with, unless one is chosen; /help lists what can be
    changed on the way.
    """
    _check_single(indices, average)
    reading = take(options, *READING)
    lm = load_for(run, model, options)
    features = load_steerable(run, lm)
    if average is not None:
        features, _ = chosen(features, indices, average)
        first: int | None = 0
    else:
        first = features.check_index(indices[0]) if indices else None
    form = form_for(features.provenance, reading)
    torch.manual_seed(seed)
    Chat(lm, features, first, strength, max_new_tokens, where, temperature, form).loop()


@click.command(cls=Command)
@run_argument
@prompt_options
@click.option(
    "--reference",
    type=file,
    help="File with ordinary prompts to judge by, one a line; built-in ones by default.",
)
@click.option("--top", default=20, help="Number of firings to print.")
@as_json_option
def watch(
    run: Path, model: str | None, reference: Path | None, top: int, as_json: bool, **options: Any
) -> None:
    """List the prompts on which features of RUN fire without steering."""
    texts = read_prompts(options)
    reference_texts = read_texts(reference) if reference else built_in.REFERENCE
    lm = load_for(run, model, options)
    features = FeatureSet.load(run, lm)
    prompts = features.provenance.prompts_like(lm, texts)
    ordinary = features.provenance.prompts_like(lm, reference_texts)
    found = find_firings(lm, features, prompts, ordinary).describe()
    if as_json:
        print_json(found)
    else:
        show_firings(found, len(texts), top)


@click.command(cls=Command)
@click.argument("run", type=click.Path(path_type=Path))
def report(run: Path) -> None:
    """Write RUN/report.html: settings, curves, features with their replies."""
    require_writable(run, REPORT)
    click.echo(write_report(run))


def _check_single(indices: Sequence[int], average: str | None) -> None:
    """Refuse several features that are not averaged.

    Raises:
        MelboError: There are several.
    """
    if len(indices) > 1 and average is None:
        raise MelboError(
            "got more than one feature: give one, or say how they become one by --average"
        )
