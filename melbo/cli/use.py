"""Commands that use the features of a run."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import torch
from click.core import ParameterSource

from melbo.cli.chat import Chat
from melbo.cli.options import (
    READING,
    Options,
    as_json_option,
    choice_options,
    contrast_option,
    file,
    load_for,
    prompt_options,
    read_prompts,
    reading_options,
    reply_length_option,
    require_model,
    run_argument,
    seed_option,
    strength_option,
    take,
    temperature_option,
    where_option,
)
from melbo.cli.pipeline import chosen, rank_run
from melbo.cli.ranking_table import show_ranking
from melbo.cli.reading import form_for
from melbo.cli.show import show_firings
from melbo.cli.terminal import Command, broken_at_words, next_step, print_json, say
from melbo.errors import MelboError
from melbo.evaluation.kept_replies import num_kept
from melbo.evaluation.ranking import ORDERS, Ranking
from melbo.evaluation.reorder import reordered
from melbo.evaluation.report import report as write_report
from melbo.evaluation.watch import watch as find_firings
from melbo.features.directions import FeatureSet
from melbo.features.generate import generate
from melbo.features.run_folder import RANKED, REPORT
from melbo.features.saved import load_features, load_steerable
from melbo.models.edits import Where
from melbo.models.language_model import LanguageModel
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
    type=click.IntRange(min=1),
    default=128,
    help="Number of replies decoded together; halved by itself when memory runs out.",
)
@click.option("--top", default=12, help="Number of features to print.")
@click.option("--force", is_flag=True, help="Generate replies anew, though they are there.")
@seed_option
@as_json_option
def rank(
    run: Path,
    model: str | None,
    validation: Path | None,
    held_out: Path | None,
    top: int,
    force: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Order the features of RUN by their effect on new prompts.

    Random vectors of the same norm are taken through the same, as a control. Where the replies are
    there already, they are put in another order without being generated again; a ranking that was
    broken off goes on.
    """
    require_writable(run, RANKED)
    texts = {
        "validation": list(read_texts(validation) if validation else built_in.VALIDATION),
        "held_out": list(read_texts(held_out) if held_out else built_in.HELD_OUT),
    }
    trust = options["trust_remote_code"]
    # a model that is named is tried, whatever is saved
    ranking = None if force or model else _saved(run, {**options, **texts})
    if ranking is None:
        lm = load_for(run, model, options)
        ranking = _generated(lm, run, texts, options)
    if as_json:
        print_json(ranking.describe())
        return
    show_ranking(ranking, top)
    click.echo(f"\nRead everything: {(run / 'report.html').resolve()}")
    next_step("chat", run, "--feature", ranking.features[0].index, trust=trust)


def _saved(run: Path, options: Options) -> Ranking | None:
    """The ranking that is there in the order asked for, if it was made as asked for.

    Settings that were not given are as they were then.
    """
    require_model(run)
    load_features(run)  # refused where it is damaged
    context = click.get_current_context()
    names = ("validation", "held_out", "contrast", "num_controls", "max_new_tokens", "seed")
    given = {
        name: options[name]
        for name in names
        if context.get_parameter_source(name) is not ParameterSource.DEFAULT
    }
    ranking = reordered(run, options["by"], given)
    if ranking is not None:
        say("the saved replies in this order; --force generates them anew")
        ranking.save(run)
        write_report(run)
    return ranking


def _generated(
    lm: LanguageModel, run: Path, texts: Mapping[str, Sequence[str]], options: Options
) -> Ranking:
    """A new ranking, or the rest of one that was broken off.

    Raises:
        KeyboardInterrupt: Ctrl-C; what was finished is kept.
    """
    try:
        return rank_run(lm, run, texts["validation"], texts["held_out"], **options)
    except KeyboardInterrupt:
        if kept := num_kept(run):
            say(f"{kept} replies are kept: the same command goes on with the rest")
        raise


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
    trust = options["trust_remote_code"]
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
            click.echo(click.style(broken_at_words(f"\n{reply.prompt_text}"), bold=True))
        label = "unsteered" if name is None else f"feature {name}"
        told = broken_at_words(f"{label}: {reply.text.strip() or '(empty reply)'}", 2)
        style = {"bold": True} if name is None else {"fg": "cyan"}
        click.echo(click.style(label, **style) + told.removeprefix(label))
    if not as_json:
        first = indices[:1] or [0]
        next_step("chat", run, "--feature", *first, trust=trust)


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
    how = (max_new_tokens, where, temperature, form)
    Chat(lm, features, first, strength, *how, None if average else run).loop()


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
    trust = options["trust_remote_code"]
    lm = load_for(run, model, options)
    features = FeatureSet.load(run, lm)
    prompts = features.provenance.prompts_like(lm, texts)
    ordinary = features.provenance.prompts_like(lm, reference_texts)
    found = find_firings(lm, features, prompts, ordinary).describe()
    if as_json:
        print_json(found)
    else:
        show_firings(found, len(texts), top)
        seen = [*found["firings"], *found["closest"], {"feature": 0}]
        next_step("chat", run, "--feature", seen[0]["feature"], trust=trust)


@click.command(cls=Command)
@click.argument("run", type=click.Path(path_type=Path))
def report(run: Path) -> None:
    """Write RUN/report.html: settings, curves, features with their replies."""
    require_writable(run, REPORT)
    click.echo(write_report(run))
    next_step("explore", run, err=True)


def _check_single(indices: Sequence[int], average: str | None) -> None:
    """Refuse several features that are not averaged.

    Raises:
        MelboError: There are several.
    """
    if len(indices) > 1 and average is None:
        raise MelboError(
            "got more than one feature: give one, or say how they become one by --average"
        )
