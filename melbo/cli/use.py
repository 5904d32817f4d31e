"""Commands that use what was found."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from melbo.cli.chat import Chat
from melbo.cli.options import (
    as_json_option,
    choice_options,
    file,
    folder,
    load_for,
    prompt_options,
    read_prompts,
    run_argument,
    seed_option,
)
from melbo.cli.pipeline import rank_run
from melbo.cli.show import say, show_firings, show_ranking, show_selection
from melbo.errors import MelboError
from melbo.evaluation.asking import asking, contrasting
from melbo.evaluation.halving import forget, plan
from melbo.evaluation.halving import select as search
from melbo.evaluation.judges import Score
from melbo.evaluation.judges import answers as answers_to
from melbo.evaluation.judges import judge as judged_by
from melbo.evaluation.rank import ORDERS
from melbo.evaluation.report import report as write_report
from melbo.evaluation.watch import watch as look
from melbo.features.ablate import ablate as taken_out
from melbo.features.adapters import AdapterSet
from melbo.features.directions import FeatureSet
from melbo.features.generate import generate
from melbo.features.run_folder import read_run, refuse_existing
from melbo.features.saved import load_steerable
from melbo.models import prompts as built_in
from melbo.models.decode import decode
from melbo.models.edits import EditSequence
from melbo.models.language_model import LanguageModel
from melbo.models.prompts import Prompts, read_pairs, read_texts


@click.command()
@run_argument
@click.option("--by", default="novel", type=click.Choice(list(ORDERS)), help="What to order by.")
@click.option(
    "--contrast",
    nargs=2,
    metavar="A B",
    help="Two strings: logit(A) − logit(B) at the first token of the reply.",
)
@click.option(
    "--validation",
    type=file,
    help="Prompts to choose the order on, one a line; built-in ones by default.",
)
@click.option(
    "--held-out", type=file, help="Prompts to report on, one a line; built-in ones by default."
)
@click.option(
    "--controls",
    "num_controls",
    default=32,
    help="How many random vectors to take through the same.",
)
@click.option(
    "--max-new-tokens", type=click.IntRange(min=1), default=32, help="Length of a reply at most."
)
@click.option(
    "--batch-size",
    default=128,
    help="Rows decoded together; halved by itself when memory runs out.",
)
@click.option("--top", default=12, help="How many features to print.")
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
    """Order the features of RUN by what they do on new prompts, beside random vectors."""
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
@click.option(
    "--strength", default=1.0, help="Multiple of the scale; negative pushes the other way."
)
@click.option(
    "--max-new-tokens", type=click.IntRange(min=1), default=64, help="Length of a reply at most."
)
@as_json_option
def sample(
    run: Path,
    model: str | None,
    indices: Sequence[int],
    merge: str | None,
    strength: float,
    max_new_tokens: int,
    as_json: bool,
    **options: Any,
) -> None:
    """Print what features of RUN make the model say, the unsteered reply first."""
    texts = read_prompts(options)
    lm = load_for(run, model, options)
    features, names = _chosen(load_steerable(run, lm), indices, merge)
    table = generate(
        lm,
        features.provenance.prompts_like(lm, texts),
        features,
        max_new_tokens=max_new_tokens,
        strength=strength,
    )
    for c in table:
        name = None if c.feature is None else names[c.feature]
        if as_json:
            row = {
                "prompt": c.prompt_text,
                "feature": name,
                "strength": 0.0 if name is None else strength,
                "text": c.text,
            }
            click.echo(json.dumps(row, ensure_ascii=False))
        else:
            label = (
                click.style(f"\n{c.prompt_text}\nunsteered", bold=True)
                if name is None
                else click.style(f"feature {name}", fg="cyan")
            )
            click.echo(f"{label}: {c.text.strip() or '(empty reply)'}")


@click.command()
@run_argument
@choice_options
@click.option("--strength", default=1.0, help="Multiple of the scale.")
@click.option(
    "--max-new-tokens", type=click.IntRange(min=1), default=256, help="Length of a reply at most."
)
def chat(
    run: Path,
    model: str | None,
    indices: Sequence[int],
    merge: str | None,
    strength: float,
    max_new_tokens: int,
    **options: Any,
) -> None:
    """Talk to the model of RUN while a feature steers it (none to begin with, by default); /help lists what can be changed on the way."""
    if len(indices) > 1 and merge is None:
        raise MelboError(
            "got more than one feature: give one, or say how they become one by --merge"
        )
    lm = load_for(run, model, options)
    features = load_steerable(run, lm)
    first = None if not indices else features.check_index(indices[0])
    if merge is not None:
        (features, _), first = _chosen(features, indices, merge), 0
    Chat(lm, features, first, strength, max_new_tokens).loop()


@click.command()
@run_argument
@prompt_options
@choice_options
@click.option(
    "--side", type=click.Choice(["source", "target"]), default="source", help="Take out v or u."
)
@click.option("--embedding", is_flag=True, help="Take them out of the embeddings as well.")
@click.option(
    "--max-new-tokens", type=click.IntRange(min=1), default=64, help="Length of a reply at most."
)
@click.option("--out", type=folder, help="Folder to save the ablated model in.")
@click.option("--force", is_flag=True, help="Replace a model that is there already.")
@as_json_option
def ablate(
    run: Path, model: str | None, indices: Sequence[int], merge: str | None, side: str, embedding: bool, max_new_tokens: int, out: Path | None,
    force: bool, as_json: bool, **options: Any,
) -> None:  # fmt: skip
    """Take features of RUN out of every matrix that writes to the stream: see what the model says then, or save it."""
    texts = read_prompts(options, at_least=0 if out is not None else 1)
    if out is not None:
        refuse_existing(out, force, ("config.json", "model.safetensors"))
    lm = load_for(run, model, options)
    features = _chosen(FeatureSet.load(run, lm), indices, merge)[0]
    prompts = features.provenance.prompts_like(lm, texts) if texts else None
    plain = _replies(lm, prompts, max_new_tokens)
    with taken_out(lm, features.V if side == "source" else features.U, embedding):
        ablated = _replies(lm, prompts, max_new_tokens)
        if out is not None:
            lm.model.save_pretrained(out)
            lm.tokenizer.save_pretrained(out)
    for text, before, after in zip(texts, plain, ablated, strict=True):
        if as_json:
            click.echo(
                json.dumps(
                    {"prompt": text, "unsteered": before, "ablated": after}, ensure_ascii=False
                )
            )
        else:
            click.echo(
                f"{click.style(text, bold=True)}\nunsteered: {before.strip()}\nablated: {after.strip()}\n"
            )
    if out is not None:
        say(f"saved to {out}; next: melbo fit {out} --prompt ...")


@click.command()
@run_argument
@prompt_options
@click.option(
    "--reference",
    type=file,
    help="Ordinary prompts to judge by, one a line; built-in ones by default.",
)
@click.option("--top", default=20, help="How many firings to print.")
@as_json_option
def watch(
    run: Path, model: str | None, reference: Path | None, top: int, as_json: bool, **options: Any
) -> None:
    """Say on which prompts which feature of RUN fires unprompted: the model is not steered."""
    texts = read_prompts(options)
    ordinary = read_texts(reference) if reference else built_in.REFERENCE
    lm = load_for(run, model, options)
    features = FeatureSet.load(run, lm)
    found = look(
        lm,
        features,
        features.provenance.prompts_like(lm, texts),
        features.provenance.prompts_like(lm, ordinary),
    ).describe()
    if as_json:
        click.echo(json.dumps(found))
        return
    show_firings(found, texts, top)


@click.command()
@run_argument
@click.option(
    "--judge", metavar="NAME",
    help="Score: complies, regex:PATTERN, FILE.py:NAME (a function of yours, of prompt and reply), classifier:MODEL#LABEL or endpoint:URL#MODEL.",
)  # fmt: skip
@click.option(
    "--answers",
    is_flag=True,
    help="Score: 1 where a reply begins with its answer; files hold prompt, tab, answer a line.",
)
@click.option(
    "--contrast",
    nargs=2,
    metavar="A B",
    help="Score: logit(A) − logit(B) at the first token of the reply.",
)
@click.option("--validation", type=file, required=True, help="Prompts to choose on, one a line.")
@click.option(
    "--test",
    type=file,
    required=True,
    help="Prompts to report on, one a line; none of them among the others.",
)
@click.option(
    "--budget",
    type=int,
    help="Completions in all; by default a quarter of all features on all validation prompts, and the test.",
)
@click.option(
    "--strength", default=1.0, help="Multiple of the scale; negative pushes the other way."
)
@click.option(
    "--max-new-tokens", type=click.IntRange(min=1), default=32, help="Length of a reply at most."
)
@click.option("--force", is_flag=True, help="Forget the scores of an earlier selection.")
@as_json_option
def select(
    run: Path, model: str | None, judge: str | None, answers: bool, contrast: tuple[str, str] | None, validation: Path, test: Path,
    budget: int | None, strength: float, max_new_tokens: int, force: bool, as_json: bool, **options: Any,
) -> None:  # fmt: skip
    """Find the feature of RUN with the best score by successive halving; a broken-off search goes on where it was."""
    if sum((judge is not None, answers, contrast is not None)) != 1:
        raise MelboError("say how to score: one of --judge, --answers and --contrast")
    if answers:
        (choose, one), (tell, other) = read_pairs(validation), read_pairs(test)
        scorer: Score | None = answers_to(dict(zip(choose + tell, one + other, strict=True)))
    else:
        choose, tell = read_texts(validation), read_texts(test)
        scorer = None if judge is None else judged_by(judge)
    lm = load_for(run, model, options)
    features = load_steerable(run, lm)
    sets = {
        "validation": features.provenance.prompts_like(lm, choose),
        "test": features.provenance.prompts_like(lm, tell),
    }
    budget = len(features) * max(1, len(choose) // 4) + 2 * len(tell) if budget is None else budget
    rounds = plan(len(features), len(choose), len(tell), budget)
    steps = ", ".join(f"{c} features to {p} prompts" for c, p in rounds.rounds)
    say(f"{rounds.completions} completions: {steps}, 2 × {rounds.test} for the test")
    key = {
        "prompts": {name: p.digest for name, p in sets.items()}, "judge": judge, "answers": answers, "contrast": contrast and list(contrast),
        "strength": strength, "max_new_tokens": max_new_tokens, "features": read_run(run).get("created"),
    }  # fmt: skip
    if scorer is not None:
        ask = asking(lm, features, sets, scorer, max_new_tokens, strength)
    else:
        ask = contrasting(lm, features, sets, contrast or ("", ""), strength)
    if force:
        forget(run)
    found = search(len(features), ask, len(choose), len(tell), budget, run, key)
    if as_json:
        click.echo(json.dumps(found.describe()))
        return
    show_selection(found, len(tell))


@click.command()
@run_argument
@click.option(
    "--feature",
    "indices",
    type=int,
    multiple=True,
    help="Which adapter; may be given again. All by default.",
)
@click.option("--strength", default=1.0, help="Multiple of the scale.")
@click.option(
    "--out", type=folder, required=True, help="Folder; each adapter gets one of its own in it."
)
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
    features = load_steerable(run, lm)
    if not isinstance(features, AdapterSet):
        raise MelboError(
            f"the run in {run} holds no adapters: only those can be LoRAs; fit with --method cpe"
        )
    for i in [features.check_index(i) for i in indices] or range(len(features)):
        click.echo(features[i].export_peft(lm, out / f"feature-{i}", strength, force))


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
def report(run: Path) -> None:
    """Write RUN/report.html: settings, curves, features with what they make the model say."""
    click.echo(write_report(run))


def _chosen(
    features: Any, indices: Sequence[int], merge: str | None
) -> tuple[Any, list[int | str]]:
    """Some of the features, or what they have in common, and what to call them."""
    rows = [features.check_index(i) for i in indices] or list(range(len(features)))
    if merge is None:
        return features[rows], list(rows)
    if not isinstance(features, FeatureSet):
        raise MelboError("this run holds no directions: leave --merge out")
    return features[rows].merged(merge), [f"{merge} of {', '.join(map(str, features)) or 'all'}"]


def _replies(lm: LanguageModel, prompts: Prompts | None, max_new_tokens: int) -> list[str]:
    """What the model says as it is."""
    if prompts is None:
        return []
    return lm.tokenizer.batch_decode(
        decode(lm, prompts.tokens, EditSequence(()), max_new_tokens), skip_special_tokens=True
    )
