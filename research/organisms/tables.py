"""Tables and a picture of evidence, for the command and for the page of results."""

from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from melbo.discovery.recipes import is_control
from melbo.evaluation.plot import lines
from melbo.evaluation.tables import markdown, plus_minus
from melbo.records import ResultLog
from research.organisms import MADE, RESULTS, read_organisms
from research.organisms.collect import PAIR, Job
from research.organisms.evidence import Evidence, of_organism
from research.organisms.gates import GATES, admitted
from research.organisms.recall import READS, Case, Elicitation, cases, elicitation, summarise
from research.organisms.settings import published as settings_published
from research.organisms.settings import table as settings_table

_ENDS = ("untriggered", "triggered", "supervised")
#: Layers of the published rows: block 12 to block 24 of 30.
PUBLISHED_LAYERS = (12, 24)


def page_tables() -> dict[str, str]:
    """Tables of docs/results/organisms.md by name, made from the committed rows."""
    about, planted = read_organisms(MADE), read_organisms(MADE)["ALL"]
    known, alone = _published(RESULTS, 128), _published(RESULTS / "alone", 64)
    measures = cases(known, admitted(planted), planted)
    return {
        "organisms/gates": gates_table([*about.values()]),
        "organisms/found": hits_table(measures),
        "organisms/recall": recall_table(summarise(measures)),
        "organisms/elicited": elicitation_table(elicitation(known, planted)),
        "organisms/said": said_table(known),
        "organisms/alone": alone_table(alone, [*about.values()]),
        "organisms/settings": settings_table(settings_published()),
    }


def _published(folder: Path, candidates: int) -> list[Evidence]:
    """Committed evidence with this number of candidates."""
    job = Job(MADE, "smollm2", PAIR, ("random",), candidates, 3, *PUBLISHED_LAYERS)
    return job.known(ResultLog(folder / "rows.jsonl"))


def tables(evidence: Sequence[Evidence], organisms: dict[str, dict[str, Any]]) -> str:
    """All that evidence of one setting says, in Markdown.

    Gates, recall, what the best candidates do and say, and organisms of one behaviour.

    Args:
        evidence: Evidence of one setting.
        organisms: Organisms by name (`research.organisms.read_organisms`).
    """
    parts = [gates_table([*organisms.values()])]
    if of_organism(evidence, "ALL"):
        planted = organisms["ALL"]
        measures = cases(evidence, admitted(planted), planted)
        parts += [hits_table(measures), recall_table(summarise(measures))]
        parts += [elicitation_table(elicitation(evidence, planted)), said_table(evidence)]
    parts.append(alone_table(evidence, [*organisms.values()]))
    return "\n".join(part for part in parts if part)


def gates_table(organisms: Sequence[dict[str, Any]]) -> str:
    """Gates in Markdown, with counts: a row for each behaviour, a column for each gate.

    Gates that failed are crossed out.

    Args:
        organisms: Organisms (`research.organisms.read_organism`).
    """
    tried = {gate["name"] for about in organisms for gate in about.get("gates", [])}
    names = [name for name in GATES if name in tried]
    rows = []
    for about in organisms:
        for b in (None, *about["behaviours"]):
            own = {gate["name"]: gate for gate in about.get("gates", []) if gate["behaviour"] == b}
            if own:
                rows.append([about["name"], b or "", *(_count(own.get(name)) for name in names)])
    return markdown(["organism", "behaviour", *names], rows)


def _count(gate: dict[str, Any] | None) -> str:
    if gate is None:
        return "–"
    count = f"{gate['hits']}/{gate['total']}" if gate["total"] else f"{gate['value']:.3f} nats"
    return count if gate["passed"] else f"~~{count}~~"


def hits_table(measures: dict[str, list[Case]]) -> str:
    """Fits of every recipe in short, in Markdown, seed by seed.

    Behaviours that have a hit, there and on the control; when the first is read; flags, cost.

    Args:
        measures: Measures of every fit, by recipe (`cases`).
    """
    rows: dict[str, list[str]] = {}
    for fits in measures.values():
        hit = [case if case["found"] else None for case in fits]
        behaviours = sum(key.endswith(" hits") for key in fits[0])
        column = {
            f"found, of {behaviours}": [case["found"] for case in fits],
            "on test prompts": [case["found on test prompts"] for case in fits],
            "on the control": [case["found on the control"] for case in fits],
            "read until the first hit": [case and case["first hit"] for case in hit],
            "expected in random order": [
                case and f"{case['random-order first hit']:.0f}" for case in hit
            ],
            **{
                flag: [f"{mean(case[flag] for case in fits):.2f}"]
                for flag in ("active", "inert", "broken")
            },
            "minutes": [f"{case['seconds'] / 60:.0f}" for case in fits],
        }
        for name, values in column.items():
            cells = ", ".join("–" if value is None else str(value) for value in values)
            rows.setdefault(name, []).append(cells)
    body = [[name, *cells] for name, cells in rows.items()]
    return markdown(["", *measures], body) if measures else ""


def recall_table(summary: Sequence[Case]) -> str:
    """The summary in Markdown: a row for each measure, a column for each recipe.

    Args:
        summary: Measures of every recipe (`summarise`).
    """
    if not summary:
        return "no rows of ALL, or none of its behaviours admitted\n"
    keys = [k for k in dict.fromkeys(k for row in summary for k in row) if k != "recipe"]
    return markdown(
        ["", *(row["recipe"] for row in summary)],
        [[k, *(_told(k, row.get(k)) for row in summary)] for k in keys if k != "seeds"],
    )


def _told(key: str, value: Sequence[float | None] | None) -> str:
    if key.startswith("interval@") and value:
        return f"[{value[0]:.2f}, {value[1]:.2f}]"
    return plus_minus(value)


def elicitation_table(elicitations: Sequence[Elicitation]) -> str:
    """Elicitation in Markdown: a row for each behaviour.

    Recipes, with their controls, stand after what the organism does without them. A cell says how
    many seeds were tested where that is not all.

    Args:
        elicitations: Elicitation of every behaviour by every recipe.
    """
    recipes = list(dict.fromkeys(e.recipe for e in elicitations))
    rows = []
    for b in dict.fromkeys(e.behaviour for e in elicitations):
        own = {e.recipe: e for e in elicitations if e.behaviour == b}
        ends = _ends(next(iter(own.values())))
        rows.append([b, *ends, *(_elicited(own[recipe]) for recipe in recipes)])
    return markdown(["", *_ENDS, *recipes], rows)


def _ends(e: Elicitation) -> list[str]:
    return [plus_minus([getattr(e, name), None]) for name in _ENDS]


def _elicited(e: Elicitation) -> str:
    control = plus_minus([e.control, None])
    if e.share is None:
        return f"–; {control}"
    tested = sum(share is not None for share in e.seeds)
    some = f" ({tested} of {len(e.seeds)} seeds)" if tested < len(e.seeds) else ""
    return f"{e.share:.2f} [{e.low:.2f}, {e.high:.2f}]{some}; {control}"


def said_table(evidence: Sequence[Evidence]) -> str:
    """Replies of the best candidates on ALL in Markdown: one for each recipe and behaviour.

    It is the reply to a test prompt that elicits the behaviour first, in the first seed that has
    one.

    Args:
        evidence: Evidence of one setting.

    Returns:
        The table, empty where there is no such reply.
    """
    rows: dict[tuple[str, str], list[str]] = {}
    for e in of_organism(evidence, "ALL"):
        for b, best in e.best.items():
            if best is not None and best.tested.said and (e.recipe, b) not in rows:
                said = (" ".join(text.split()).replace("|", "\\|") for text in best.tested.said)
                rows[e.recipe, b] = [e.recipe, b, *said]
    return markdown(["", "", "asked", "said"], [*rows.values()]) if rows else ""


def alone_table(evidence: Sequence[Evidence], organisms: Sequence[dict[str, Any]]) -> str:
    """Organisms of one behaviour in Markdown.

    A cell says how many candidates of a recipe are hits, seed by seed, and what the best does on
    test prompts.

    Args:
        evidence: Evidence of one setting.
        organisms: Organisms (`research.organisms.read_organism`); those that are not admitted, or
            hold several behaviours, are left out.

    Returns:
        The table, empty where there is no evidence of such an organism.
    """
    alone = [about for about in organisms if len(about["behaviours"]) == 1 == len(admitted(about))]
    names = {about["name"] for about in alone}
    recipes = list(dict.fromkeys(e.recipe for e in evidence if e.organism in names))
    rows = []
    for about in alone:
        (b,), own = about["behaviours"], {e.recipe: e for e in elicitation(evidence, about)}
        if not own:
            continue
        hits = {
            recipe: ", ".join(str(case[f"{b} hits"]) for case in fits)
            for recipe, fits in cases(evidence, [b], about).items()
        }
        cells = [
            f"{hits[recipe]}; {_elicited(own[recipe])}" if recipe in own else "–"
            for recipe in recipes
        ]
        rows.append([b, *_ends(next(iter(own.values()))), *cells])
    return markdown(["alone", *_ENDS, *recipes], rows) if rows else ""


def picture(measures: dict[str, list[Case]]) -> bytes | None:
    """A PNG of recall on ALL less that on its control, by the number of candidates read.

    Args:
        measures: Measures of every fit, by recipe (`cases`).

    Returns:
        The picture; None where no fit has a control.
    """

    def more(recipe: str, reads: int) -> list[float]:
        differences = (case.get(f"difference@{reads}") for case in measures[recipe])
        return [value for value in differences if value is not None]

    reads = [k for k in READS if any(more(recipe, k) for recipe in measures)]
    if not reads:
        return None
    return lines(
        list(measures),
        reads,
        more,
        dotted=[recipe for recipe in measures if is_control(recipe)],
        level=0.0,
        x="candidates read, in blind order",
        y="recall of planted behaviours, less control",
        log=True,
    )
