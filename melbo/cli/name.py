"""The command that names features and findings by asking a model."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import click

from melbo.cli.options import feature_option, folder
from melbo.cli.terminal import Command, next_step, tell
from melbo.errors import MelboError
from melbo.evaluation.endpoint import Endpoint
from melbo.explorer.labels import Labels
from melbo.explorer.naming import ANSWER, Named, feature_questions, finding_questions, name_by
from melbo.explorer.opened import open_folders


@click.command(cls=Command)
@click.argument("run", type=folder)
@click.option(
    "--endpoint",
    required=True,
    metavar="URL",
    help="Endpoint that speaks OpenAI's protocol, up to /v1; OPENAI_API_KEY is sent if it is set.",
)
@click.option("--model", required=True, help="Name of the model there.")
@feature_option
@click.option("--force", is_flag=True, help="Replace names that are there already.")
def name(run: Path, endpoint: str, model: str, indices: Sequence[int], force: bool) -> None:
    """Name the features of RUN by what a model makes of their replies.

    RUN is a folder of a ranked run, or of an audit whose findings are named. The model sees prompts
    and replies. Active features are named if none is chosen. Names are labels, as `melbo explore`
    shows them; without this, features are named by their own distinctive words.
    """
    ask = partial(Endpoint(endpoint, model).ask, max_tokens=ANSWER)
    questions, labels = _questions(run, indices)
    named = name_by(ask, questions, labels, force)
    for key, text in named.names.items():
        tell(f"{key}: {text}")
    _account(named, len(questions))
    next_step("explore", run)


def _questions(run: Path, indices: Sequence[int]) -> tuple[dict[str, str], Labels]:
    """Questions about a run or an audit, and the labels that answers go to.

    Raises:
        MelboError: Features of an audit are asked for, or of a run that has not been ranked.
    """
    opened = open_folders([run])
    if opened.audits:
        if indices:
            raise MelboError(
                f"{run} holds an audit, whose findings are named: leave --feature out, or give a "
                "run's own folder"
            )
        return finding_questions(opened.audits[0].result), opened.audits[0].labels
    view = next(iter(opened.runs.values()))
    for index in indices:
        if not 0 <= index < view.num:
            raise MelboError(f"no feature {index}: {run} holds 0 to {view.num - 1}")
    return feature_questions(view, indices), view.labels


def _account(named: Named, num: int) -> None:
    """Say what was named.

    Raises:
        MelboError: Naming ended before its end.
    """
    if named.unusable:
        tell(f"no name in the answers for: {', '.join(named.unusable)}")
    if named.failure is not None:
        raise MelboError(
            f"{named.failure} Names that were given are kept ({len(named.names)} of {num}); "
            "the same command goes on."
        )
    before = num - len(named.names) - len(named.unusable)
    tell(f"{len(named.names)} names given" + (f", {before} were there before" if before else ""))
