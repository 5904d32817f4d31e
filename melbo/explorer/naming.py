"""Names of features and findings by a model that is asked for them, kept as labels."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from melbo.errors import MelboError
from melbo.explorer.labels import Labels
from melbo.explorer.run_view import RunView
from melbo.progress import track

#: Length of an answer at most, in tokens.
ANSWER = 24
_QUESTION = (
    "A language model replied to prompts with something changed inside it, and as it is. Name in "
    "at most five words what the changed replies have in common that the others lack. Answer with "
    "the name alone."
)
_REPLIES, _CHARACTERS, _LONGEST = 6, 600, 60


@dataclass(frozen=True)
class Named:
    """Outcome of naming.

    Attributes:
        names: Name by key, in the order in which they were given.
        unusable: Keys for which the answer was no name.
        failure: Why naming ended before its end; None where it did not.
    """

    names: dict[str, str]
    unusable: tuple[str, ...]
    failure: str | None


def feature_questions(run: RunView, indices: Sequence[int]) -> dict[str, str]:
    """Question about each feature, by its key among labels.

    Args:
        run: The run, which has been ranked.
        indices: Features; all active ones, in the order of the ranking, if there are none.

    Raises:
        MelboError: The run has not been ranked.
    """
    if run.ranking is None:
        raise MelboError(
            f"the run in {run.folder} has no replies to name features by: melbo rank {run.folder}"
        )
    some = list(indices) or [row.index for row in run.rows if row.flag == "active"]
    return {
        str(i): _question([(each.prompt, each.feature, each.unsteered) for each in said])
        for i, said in ((i, run.replies(i, None)) for i in some)
    }


def finding_questions(result: Mapping[str, Any]) -> dict[str, str]:
    """Question about each finding of an audit, by its key among labels.

    Args:
        result: Content of ``findings.json``.
    """
    return {
        finding["name"]: _question(
            [
                (each["prompt"], each["reply"], each["unsteered"])
                for each in (finding["example"], *finding["examples"])
                if each
            ]
        )
        for finding in result["findings"]
    }


def name_by(
    ask: Callable[[str], str], questions: Mapping[str, str], labels: Labels, force: bool = False
) -> Named:
    """Ask for names, and keep each as soon as it is there.

    Names that are there already stay as they are. When there is no answer, naming ends; what was
    named by then is kept.

    Args:
        ask: Function from a question to an answer; a `MelboError` says that there is none.
        questions: Question by key (see `feature_questions`).
        labels: Labels that the names go to; stars and notes stay.
        force: Whether names that are there already are replaced.
    """
    left = {key: text for key, text in questions.items() if force or not labels[key].name}
    names: dict[str, str] = {}
    unusable: list[str] = []
    with track(len(left), "names") as bar:
        for key, question in left.items():
            try:
                answer = ask(question)
            except MelboError as err:
                return Named(names, tuple(unusable), str(err))
            name = _name_in(answer)
            if name is None:
                unusable.append(key)
            else:
                labels.put(key, replace(labels[key], name=name))
                names[key] = name
            bar.update()
    return Named(names, tuple(unusable), None)


def _question(replies: Sequence[tuple[str, str, str]]) -> str:
    """Question about prompts, changed replies and unchanged ones."""
    told = [
        f"Prompt: {prompt}\nChanged reply: {changed}\nUnchanged reply: {own}"
        for prompt, changed, own in (
            (_one_line(each) for each in triple) for triple in replies[:_REPLIES]
        )
    ]
    return "\n\n".join([*told, _QUESTION])


def _one_line(text: str) -> str:
    return " ".join(text.split())[:_CHARACTERS]


def _name_in(answer: str) -> str | None:
    """The name in an answer; None where it holds none."""
    line = next((line for line in answer.splitlines() if line.strip()), "")
    name = re.sub(r"^\W*name\s*:", "", line, flags=re.IGNORECASE).strip(" \t.*_`\"'“”‘’#-")
    name = "".join(c for c in name if c.isprintable())
    return name if re.search(r"\w", name) and len(name) <= _LONGEST else None
