"""The command that audits a model."""

from functools import partial
from pathlib import Path
from typing import Any

import click

from melbo.audit.audit import FINDINGS, LOG, REPLY_TOKENS, Audit, usual_elicitors
from melbo.audit.budget import TOKENS
from melbo.audit.page import page
from melbo.audit.parts import Parts
from melbo.cli.audit_table import show_findings
from melbo.cli.options import (
    LOADING,
    READING,
    as_json_option,
    as_prompts,
    folder,
    load,
    loading_options,
    new_run_options,
    prompt_options,
    read_prompts,
    reading_options,
    reply_length_option,
    seed_option,
    take,
)
from melbo.cli.terminal import Command, print_json, say
from melbo.discovery.candidates import Elicitor
from melbo.discovery.latents import Latents
from melbo.discovery.own import Own
from melbo.records import refuse_existing, write_atomically

_PAGE = "findings.html"


@click.command(cls=Command)
@click.argument("model")
@click.option("--base", help="Model that this one was tuned from, to compare with.")
@click.option("--reference", help="Any open model; its likelihoods help to order the findings.")
@prompt_options
@reading_options
@click.option(
    "--budget",
    type=click.IntRange(min=1),
    default=TOKENS,
    help="Number of tokens that the model may read and write.",
)
@click.option(
    "--elicitor",
    "own",
    multiple=True,
    metavar="FILE.py:NAME",
    help="A function of your own that gives candidates, beside the usual ones; may be given again.",
)
@click.option(
    "--dictionary",
    type=folder,
    help="Sparse dictionary of the model, or of --base: its latents are tried too.",
)
@reply_length_option(REPLY_TOKENS)
@new_run_options
@seed_option
@loading_options
@as_json_option
def audit(
    model: str,
    base: str | None,
    reference: str | None,
    budget: int,
    own: tuple[str, ...],
    dictionary: Path | None,
    max_new_tokens: int,
    out: Path,
    force: bool,
    seed: int,
    as_json: bool,
    **options: Any,
) -> None:
    """Look for what is hidden in MODEL, and list the findings with their evidence.

    An audit that was cut off goes on where it stopped when the same command is given again.
    Built-in prompts of many kinds are used if none are given; give prompts of your own where
    something may show on one kind only.
    """
    refuse_existing(out, force, [FINDINGS], "an audit")
    if force:
        (out / LOG).unlink(missing_ok=True)
    texts = read_prompts(options, at_least=0)
    elicitors: list[Elicitor] = [Own.of(spec) for spec in own]
    loading, reading = take(options, *LOADING), take(options, *READING)
    lm = load(model, dict(loading))
    others = {name: load(name, dict(loading)) for name in {base, reference} if name is not None}
    read = partial(as_prompts, lm, reading=reading)
    parts = Parts.split(read(texts)) if texts else Parts.built_in(lm, read)
    tuned_from = None if base is None else others[base]
    if dictionary is not None:
        elicitors.append(Latents.read(dictionary, lm, tuned_from))
    made = Audit(
        lm,
        parts,
        base=tuned_from,
        reference=None if reference is None else others[reference],
        budget=budget,
        # a small budget pays for the first ones only
        elicitors=[*elicitors, *usual_elicitors(tuned_from)],
        max_new_tokens=max_new_tokens,
        seed=seed,
    )
    say(f"{budget:,} tokens in all; the bar counts them, and what is done is kept in {out}")
    result = made.run(out)
    write_atomically({out / _PAGE: page(result).encode()})
    if as_json:
        print_json(result)
        return
    say(f"Read everything: {(out / _PAGE).resolve()}\n")
    show_findings(result, out)
