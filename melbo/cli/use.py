"""Commands that use the features of a run."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from melbo.cli.chat import Chat
from melbo.cli.options import (
    as_json_option,
    choice_options,
    contrast_option,
    file,
    folder,
    load_for,
    prompt_options,
    read_prompts,
    reply_length_option,
    run_argument,
    seed_option,
    strength_option,
)
from melbo.cli.pipeline import rank_run
from melbo.cli.show import say, show_firings, show_ranking
from melbo.errors import MelboError
from melbo.evaluation.rank import ORDERS
from melbo.evaluation.report import report as write_report
from melbo.evaluation.watch import watch as find_firings
from melbo.features.ablate import ablate as ablation
from melbo.features.adapters import AdapterSet
from melbo.features.directions import FeatureSet
from melbo.features.generate import generate
from melbo.features.saved import load_steerable
from melbo.features.steerable import Steerable
from melbo.models import prompts as built_in
from melbo.models.decode import decode
from melbo.models.edits import EditSequence
from melbo.models.language_model import LanguageModel
from melbo.models.prompts import Prompts, read_texts
from melbo.records import refuse_existing

_Set = TypeVar("_Set", bound=Steerable)


@click.command()
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
    choose = read_texts(validation) if validation else built_in.VALIDATION
    tell = read_texts(held_out) if held_out else built_in.HELD_OUT
    lm = load_for(run, model, options)
    ranking = rank_run(lm, run, choose, tell, **options)
    if as_json:
        click.echo(json.dumps(ranking.describe()))
        return
    show_ranking(ranking, top)
    click.echo(f"\nRead everything:     {(run / 'report.html').resolve()}")


@click.command()
@run_argument
@prompt_options
@choice_options
@strength_option
@reply_length_option(64)
@as_json_option
def sample(
    run: Path,
    model: str | None,
    indices: Sequence[int],
    average: str | None,
    strength: float,
    max_new_tokens: int,
    as_json: bool,
    **options: Any,
) -> None:
    """Print replies of the model of RUN under its features.

    The unsteered reply comes first; all features follow if none is chosen.
    """
    texts = read_prompts(options)
    lm = load_for(run, model, options)
    features, names = _chosen(load_steerable(run, lm), indices, average)
    prompts = features.provenance.prompts_like(lm, texts)
    replies = generate(lm, prompts, features, max_new_tokens=max_new_tokens, strength=strength)
    for reply in replies:
        name = None if reply.feature is None else names[reply.feature]
        if as_json:
            row = {
                "prompt": reply.prompt_text,
                "feature": name,
                "strength": 0.0 if name is None else strength,
                "text": reply.text,
            }
            click.echo(json.dumps(row, ensure_ascii=False))
            continue
        if name is None:
            label = click.style(f"\n{reply.prompt_text}\nunsteered", bold=True)
        else:
            label = click.style(f"feature {name}", fg="cyan")
        click.echo(f"{label}: {reply.text.strip() or '(empty reply)'}")


@click.command()
@run_argument
@choice_options
@strength_option
@reply_length_option(256)
def chat(
    run: Path,
    model: str | None,
    indices: Sequence[int],
    average: str | None,
    strength: float,
    max_new_tokens: int,
    **options: Any,
) -> None:
    """Talk to the model of RUN while a feature steers it.

    No feature steers to begin with, unless one is chosen; /help lists what can be changed on the
    way.
    """
    _check_single(indices, average)
    lm = load_for(run, model, options)
    features = load_steerable(run, lm)
    first = features.check_index(indices[0]) if indices else None
    if average is not None:
        (features, _), first = _chosen(features, indices, average), 0
    Chat(lm, features, first, strength, max_new_tokens).loop()


@click.command()
@run_argument
@prompt_options
@choice_options
@click.option(
    "--side",
    type=click.Choice(["source", "target"]),
    default="source",
    help="Remove the source directions v, or the target directions u.",
)
@click.option("--embedding", is_flag=True, help="Remove them from the embeddings as well.")
@reply_length_option(64)
@click.option("--out", type=folder, help="Folder to save the ablated model in.")
@click.option("--force", is_flag=True, help="Replace a model that is there already.")
@as_json_option
def ablate(
    run: Path,
    model: str | None,
    indices: Sequence[int],
    average: str | None,
    side: str,
    embedding: bool,
    max_new_tokens: int,
    out: Path | None,
    force: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Remove features of RUN from all matrices that write to the stream.

    Prints replies of the model before and after, or saves the ablated model; all features are
    removed if none is chosen.
    """
    texts = read_prompts(options, at_least=0 if out is not None else 1)
    if out is not None:
        refuse_existing(out, force, ("config.json", "model.safetensors"), "a model")
    lm = load_for(run, model, options)
    features, _ = _chosen(FeatureSet.load(run, lm), indices, average)
    prompts = features.provenance.prompts_like(lm, texts) if texts else None
    plain = _replies(lm, prompts, max_new_tokens)
    with ablation(lm, features.V if side == "source" else features.U, embedding):
        ablated = _replies(lm, prompts, max_new_tokens)
        if out is not None:
            lm.model.save_pretrained(out)
            lm.tokenizer.save_pretrained(out)
    for text, before, after in zip(texts, plain, ablated, strict=True):
        if as_json:
            row = {"prompt": text, "unsteered": before, "ablated": after}
            click.echo(json.dumps(row, ensure_ascii=False))
        else:
            click.echo(click.style(text, bold=True))
            click.echo(f"unsteered: {before.strip()}\nablated: {after.strip()}\n")
    if out is not None:
        say(f"saved to {out}; next: melbo fit {out} --prompt ...")


@click.command()
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
    ordinary = read_texts(reference) if reference else built_in.REFERENCE
    lm = load_for(run, model, options)
    features = FeatureSet.load(run, lm)
    prompts, usual = (features.provenance.prompts_like(lm, some) for some in (texts, ordinary))
    found = find_firings(lm, features, prompts, usual).describe()
    if as_json:
        click.echo(json.dumps(found))
    else:
        show_firings(found, len(texts), top)


@click.command()
@run_argument
@click.option(
    "--feature",
    "indices",
    type=int,
    multiple=True,
    help="Index of an adapter; may be given again. All by default.",
)
@strength_option
@click.option("--out", type=folder, required=True, help="Folder; each adapter gets one inside it.")
@click.option("--force", is_flag=True, help="Replace adapters that are there already.")
def export(
    run: Path,
    model: str | None,
    indices: Sequence[int],
    strength: float,
    out: Path,
    force: bool,
    **options: Any,
) -> None:
    """Write adapters of RUN as LoRAs that peft loads."""
    lm = load_for(run, model, options)
    adapters = _adapters(load_steerable(run, lm), run)
    for i in [adapters.check_index(i) for i in indices] or range(len(adapters)):
        click.echo(adapters[i].export_peft(lm, out / f"feature-{i}", strength, force))


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
def report(run: Path) -> None:
    """Write RUN/report.html: settings, curves, features with their replies."""
    click.echo(write_report(run))


def _chosen(
    features: _Set, indices: Sequence[int], average: str | None
) -> tuple[_Set, list[int | str]]:
    """The chosen features (all if none is), or their average, and the name of each.

    Raises:
        MelboError: There is no such feature, or features of this kind have no average.
    """
    rows = [features.check_index(i) for i in indices] or list(range(len(features)))
    if average is None:
        return features[rows], list(rows)
    if not isinstance(features, FeatureSet):
        raise MelboError("this run holds no directions: leave --average out")
    names = ", ".join(map(str, indices)) or "all"
    return features[rows].averaged(average), [f"{average} of {names}"]


def _check_single(indices: Sequence[int], average: str | None) -> None:
    """Refuse several features that are not averaged.

    Raises:
        MelboError: There are several.
    """
    if len(indices) > 1 and average is None:
        raise MelboError(
            "got more than one feature: give one, or say how they become one by --average"
        )


def _adapters(features: Steerable, run: Path) -> AdapterSet:
    """Features as adapters.

    Raises:
        MelboError: They are of another kind.
    """
    if not isinstance(features, AdapterSet):
        raise MelboError(
            f"the run in {run} holds no adapters: only those can be LoRAs; fit with --method cpe"
        )
    return features


def _replies(lm: LanguageModel, prompts: Prompts | None, max_new_tokens: int) -> list[str]:
    """Replies of the model without steering; none without prompts."""
    if prompts is None:
        return []
    replies = decode(lm, prompts.tokens, EditSequence(()), max_new_tokens)
    return list(lm.tokenizer.batch_decode(replies, skip_special_tokens=True))
