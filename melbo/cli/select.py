"""The command that selects a feature by a score."""

from pathlib import Path
from typing import Any

import click

from melbo.cli.options import (
    as_json_option,
    contrast_option,
    file,
    load_for,
    reply_length_option,
    run_argument,
    strength_option,
)
from melbo.cli.show import show_selection
from melbo.cli.terminal import Command, next_step, print_json, say
from melbo.errors import MelboError
from melbo.evaluation.asking import ask_contrasts, ask_replies
from melbo.evaluation.halving import Plan, forget, plan, usual_budget
from melbo.evaluation.halving import select as halve
from melbo.evaluation.scorers import Scorer, scorer
from melbo.evaluation.scorers import answers as answer_scorer
from melbo.features.run_folder import SELECTED, read_run
from melbo.features.saved import load_steerable
from melbo.models.text.prompt_files import ANSWERS
from melbo.models.text.prompts import read_pairs, read_texts
from melbo.records import require_writable


@click.command(cls=Command)
@run_argument
@click.option(
    "--judge",
    metavar="NAME",
    help="Score replies by complies, regex:PATTERN, FILE.py:NAME (your function of prompt and "
    "reply), classifier:MODEL#LABEL or endpoint:URL#MODEL.",
)
@click.option(
    "--answers",
    is_flag=True,
    help="Score 1 where a reply begins with its answer; files hold prompt, tab, answer a line.",
)
@contrast_option
@click.option(
    "--validation", type=file, required=True, help="File with prompts to choose on, one a line."
)
@click.option(
    "--test",
    type=file,
    required=True,
    help="File with prompts to report on, one a line; none of them among the others.",
)
@click.option(
    "--budget",
    type=int,
    help="Number of replies in all; by default those of all features to a quarter of the "
    "validation prompts, and the test.",
)
@strength_option
@reply_length_option(32)
@click.option("--force", is_flag=True, help="Forget the scores of an earlier selection.")
@as_json_option
def select(
    run: Path,
    model: str | None,
    judge: str | None,
    answers: bool,
    contrast: tuple[str, str] | None,
    validation: Path,
    test: Path,
    budget: int | None,
    strength: float,
    max_new_tokens: int,
    force: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Find the feature of RUN with the best score by successive halving.

    A search that was broken off goes on where it was.
    """
    _check_one_score(judge, answers, contrast)
    trust = options["trust_remote_code"]
    require_writable(run, SELECTED)
    validation_texts, test_texts, score = _read_files(validation, test, judge, answers)
    lm = load_for(run, model, options)
    features = load_steerable(run, lm)
    sets = {
        name: features.provenance.prompts_like(lm, texts)
        for name, texts in (("validation", validation_texts), ("test", test_texts))
    }
    sizes = len(features), len(validation_texts), len(test_texts)
    if budget is None:
        budget = usual_budget(*sizes)
    rounds = plan(*sizes, budget)
    steps = ", ".join(f"{count} features to {prompts} prompts" for count, prompts in rounds.rounds)
    say(f"{rounds.completions} completions: {steps}, 2 × {rounds.test} for the test")
    _warn_of_single_prompts(rounds, sizes)
    key = {
        "prompts": {name: prompts.digest for name, prompts in sets.items()},
        "judge": judge,
        "answers": answers,
        "contrast": contrast and list(contrast),
        "strength": strength,
        "max_new_tokens": max_new_tokens,
        "features": read_run(run).get("created"),
    }
    if contrast is not None:
        ask = ask_contrasts(lm, features, sets, contrast, strength)
    else:
        assert score is not None
        ask = ask_replies(lm, features, sets, score, max_new_tokens, strength)
    if force:
        forget(run)
    found = halve(len(features), ask, *sizes[1:], budget, run, key)
    if as_json:
        print_json(found.describe())
    else:
        show_selection(found, len(test_texts))
        next_step("chat", run, "--feature", found.best, "--strength", strength, trust=trust)


def _warn_of_single_prompts(rounds: Plan, sizes: tuple[int, int, int]) -> None:
    """Say so where features are thrown out by a single reply.

    Args:
        rounds: The rounds.
        sizes: Number of features, of validation prompts and of test prompts.
    """
    if rounds.rounds[0][1] == 1 and sizes[0] > 1:
        say(
            "the first round lets each feature answer a single validation prompt, and one reply "
            f"decides which half goes on: {_remedy(sizes)}"
        )


def _remedy(sizes: tuple[int, int, int]) -> str:
    """Advice for more prompts in the first round, from the sizes of the selection."""
    features, validation, test = sizes
    for budget in (features * share + 2 * test for share in range(2, 2 * validation + 2)):
        if plan(*sizes, budget).rounds[0][1] > 1:
            return f"give --budget {budget} or more"
    return "give more validation prompts"


def _check_one_score(judge: str | None, answers: bool, contrast: tuple[str, str] | None) -> None:
    """Refuse no score, and several.

    Raises:
        MelboError: There is not exactly one.
    """
    if [judge is not None, answers, contrast is not None].count(True) != 1:
        raise MelboError("say how to score: one of --judge, --answers and --contrast")


def _read_files(
    validation: Path, test: Path, judge: str | None, answers: bool
) -> tuple[list[str], list[str], Scorer | None]:
    """Validation prompts, test prompts, and the scorer of replies (None for a contrast)."""
    if answers:
        validation_texts, validation_answers = read_pairs(validation, ANSWERS)
        test_texts, test_answers = read_pairs(test, ANSWERS)
        prompts, expected = validation_texts + test_texts, validation_answers + test_answers
        return (
            validation_texts,
            test_texts,
            answer_scorer(dict(zip(prompts, expected, strict=True))),
        )
    score = None if judge is None else scorer(judge)
    return read_texts(validation), read_texts(test), score
