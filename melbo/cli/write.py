"""Commands that write models: ablate and export."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from melbo.cli.options import (
    READING,
    as_json_option,
    choice_options,
    feature_option,
    folder,
    load_for,
    prompt_options,
    read_prompts,
    reading_options,
    reply_length_option,
    run_argument,
    strength_option,
    take,
)
from melbo.cli.pipeline import chosen
from melbo.cli.reading import form_for
from melbo.cli.terminal import Command, broken_at_words, next_step, print_json, tell
from melbo.errors import MelboError
from melbo.features.ablate import ablate as ablation
from melbo.features.adapters import AdapterSet, refuse_export
from melbo.features.directions import FeatureSet
from melbo.features.saved import load_steerable
from melbo.features.steerable import Steerable
from melbo.models.decoding.decode import decode
from melbo.models.edits import EditSequence
from melbo.models.language_model import LanguageModel, first_line
from melbo.models.text.prompts import Prompts
from melbo.records import refuse_existing


@click.command(cls=Command)
@run_argument
@prompt_options
@reading_options
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
    removed if none is chosen. Prompts are read as those of the fit were, where the options do not
    say otherwise.
    """
    texts = read_prompts(options, at_least=0 if out is not None else 1)
    reading = take(options, *READING)
    if out is not None:
        refuse_existing(out, force, ("config.json", "model.safetensors"), "a model")
    trust = options["trust_remote_code"]
    lm = load_for(run, model, options)
    features, _ = chosen(FeatureSet.load(run, lm), indices, average)
    fitted = features.provenance
    form = form_for(fitted, reading)
    prompts = fitted.prompts_like(lm, texts, form) if texts else None
    plain = _replies(lm, prompts, max_new_tokens)
    with ablation(lm, features.V if side == "source" else features.U, embedding):
        ablated = _replies(lm, prompts, max_new_tokens)
        if out is not None:
            _save_model(lm, out)
    for text, before, after in zip(texts, plain, ablated, strict=True):
        if as_json:
            row = {"prompt": text, "unsteered": before, "ablated": after}
            print_json(row)
        else:
            click.echo(click.style(broken_at_words(text), bold=True))
            tell(f"unsteered: {before.strip()}\nablated: {after.strip()}\n")
    if out is not None:
        click.echo(f"saved to {out}", err=True)
        next_step("fit", out, "--prompt", "TEXT", "--out", "runs/ablated", trust=trust, err=True)
    elif not as_json:
        next_step("ablate", run, *_again(indices, average, side), "--out", "ablated", trust=trust)


def _again(indices: Sequence[int], average: str | None, side: str) -> list[str]:
    """Words of a command line that ask for the same features again."""
    words = [word for i in indices for word in ("--feature", str(i))]
    words += [] if average is None else ["--average", average]
    return words if side == "source" else [*words, "--side", side]


@click.command(cls=Command)
@run_argument
@feature_option
@strength_option
@click.option(
    "--together",
    is_flag=True,
    help="Write one LoRA, the sum of all that are chosen, into the folder itself.",
)
@click.option("--out", type=folder, required=True, help="Folder; each feature gets one inside it.")
@click.option("--force", is_flag=True, help="Replace adapters that are there already.")
def export(
    run: Path,
    model: str | None,
    indices: Sequence[int],
    strength: float,
    together: bool,
    out: Path,
    force: bool,
    **options: Any,
) -> None:
    """Write adapters of RUN as LoRAs that peft loads.

    All are written if none is chosen, each as a LoRA of rank one, or --together as one.
    """
    refuse_export(out, force or not together)
    trust = options["trust_remote_code"]
    lm = load_for(run, model, options)
    adapters = _adapters(load_steerable(run, lm), run)
    rows = [adapters.check_index(i) for i in dict.fromkeys(indices)] or [*range(len(adapters))]
    groups = {out: rows} if together else {out / f"feature-{i}": [i] for i in rows}
    for path in groups:
        refuse_export(path, force)
    for path, some in groups.items():
        click.echo(adapters[some].export_peft(lm, path, strength, force))
    next_step("openings", next(iter(groups)), trust=trust, err=True)


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


def _save_model(lm: LanguageModel, folder: Path) -> None:
    """Save a model, its tokenizer, and the processor of a model that sees pictures.

    Raises:
        MelboError: The folder cannot be written.
    """
    parts = (lm.model, lm.tokenizer, getattr(lm, "processor", None))
    try:
        for part in parts:
            if part is not None:
                part.save_pretrained(folder)
    except OSError as err:
        raise MelboError(
            f"cannot save the model in {folder} ({err.strerror or first_line(err)}): "
            "free some space, or give a folder that can be written to"
        ) from err


def _replies(lm: LanguageModel, prompts: Prompts | None, max_new_tokens: int) -> list[str]:
    """Replies of the model without steering; none without prompts."""
    if prompts is None:
        return []
    replies = decode(lm, prompts.tokens, EditSequence(()), max_new_tokens)
    return list(lm.tokenizer.batch_decode(replies, skip_special_tokens=True))
