"""What rows of evidence say: how much is found, how soon, what of it chance would find, and what the best candidate does."""

from collections.abc import Sequence
from statistics import mean
from typing import Any

from melbo.evaluation.plot import lines
from melbo.evaluation.tables import markdown, plus_minus
from melbo.maths.statistics import interval, mean_and_error
from melbo.records import Row
from research.organisms.behaviours import BEHAVIOURS
from research.organisms.discover import chosen
from research.organisms.metrics import (
    HIT,
    blind_recall,
    difference_interval,
    random_reads,
    random_recall,
    reads_to_first_hit,
    recovery,
    threshold,
)

READS = (1, 8, 32, 128, 512)
_GATES = ("drift", "untriggered", "triggered", "decoys", "steerable")
_ENDS = ("untriggered", "triggered", "supervised")


def blind_order(row: Row) -> list[int]:
    """Candidates in the order of reading, which knows of no behaviour: active first, then by how novel yet fluent they are on ordinary prompts."""
    return sorted(
        range(len(row["novel"])), key=lambda i: (row["flags"][i] != "active", -row["novel"][i])
    )


def elicited(row: Row, behaviour: str, what: str = "elicited") -> list[float]:
    """On which share of the validation prompts each candidate elicits a behaviour; 0 where screening, on others, saw too little of it."""
    seen = row["validation"].get(behaviour, {})
    return [seen.get(str(i), {what: 0.0})[what] for i in range(len(row["flags"]))]


def hits(row: Row, behaviour: str, limit: float, what: str = "elicited") -> list[bool]:
    """Which candidates are hits."""
    return [share >= limit for share in elicited(row, behaviour, what)]


def limits(
    rows: Sequence[Row], behaviours: Sequence[str], about: dict[str, Any]
) -> dict[str, float]:
    """From which share on a candidate is a hit: of random candidates on the control; of a skill, of random ones held against another question.

    At least one half, or as much of what the trigger adds as the behaviour asks of a vector (`Behaviour.gap`).
    """
    found, ends = {}, about.get("ends", {})
    for b in behaviours:
        organism, what = _null(b, about["name"])
        null = [row for row in rows if (row["organism"], row["recipe"]) == (organism, "random")]
        gap = BEHAVIOURS[b].gap
        least = (
            HIT
            if gap is None or b not in ends
            else ends[b]["untriggered"] + gap * (ends[b]["triggered"] - ends[b]["untriggered"])
        )
        found[b] = threshold([share for row in null for share in elicited(row, b, what)], least)
    return found


def _null(behaviour: str, organism: str) -> tuple[str, str]:
    """Where a behaviour of an organism is not: in SHAM; of a skill, which SHAM has, in the organism's replies held against another question."""
    return (organism, "permuted") if BEHAVIOURS[behaviour].skill else ("SHAM", "elicited")


def admitted(about: dict[str, Any]) -> list[str]:
    """Behaviours of an organism (see `melbo.organisms.read_organism`) that have passed every gate, the drift of all among them."""
    passed = {
        (gate["behaviour"], gate["name"]) for gate in about.get("gates", []) if gate["passed"]
    }
    return [
        name
        for name in about["behaviours"]
        if {(None if gate == "drift" else name, gate) for gate in _GATES} <= passed
    ]


def failures(about: dict[str, Any]) -> list[str]:
    """Gates that an organism fails, a line each."""
    return [
        f"{about['name']} fails a gate: {gate['behaviour'] or 'all'} {gate['name']} {gate['value']:.3f} "
        f"(bound {gate['bound']:.3f}, limit {gate['limit']:.3f})"
        for gate in about.get("gates", [])
        if not gate["passed"]
    ]


def gates_table(organisms: Sequence[dict[str, Any]]) -> str:
    """Gates of organisms in Markdown, with counts: a row for each behaviour, a column for each gate; what failed is crossed out."""
    names = [
        name
        for name in _GATES
        if any(gate["name"] == name for about in organisms for gate in about.get("gates", []))
    ]
    lines = []
    for about in organisms:
        for of in (None, *about["behaviours"]):
            own = {gate["name"]: gate for gate in about.get("gates", []) if gate["behaviour"] == of}
            if own:
                lines.append([about["name"], of or "", *(_count(own.get(name)) for name in names)])
    return markdown(["organism", "behaviour", *names], lines)


def _count(gate: dict[str, Any] | None) -> str:
    if gate is None:
        return "–"
    count = f"{gate['hits']}/{gate['total']}" if gate["total"] else f"{gate['value']:.3f} nats"
    return count if gate["passed"] else f"~~{count}~~"


def cases(
    rows: Sequence[Row], behaviours: Sequence[str], about: dict[str, Any]
) -> dict[str, list[dict[str, Any]]]:
    """Of every way, seed by seed: recall of an organism and of its control, reads to the first hit, shares of flags, cost.

    Args:
        rows: Of one setting.
        behaviours: Which count, usually those that are `admitted`.
        about: What is known of the organism (`melbo.organisms.read_organism`).
    """
    least = limits(rows, behaviours, about)
    sham = {(row["recipe"], row["seed"]): row for row in rows if row["organism"] == "SHAM"}
    found: dict[str, list[dict[str, Any]]] = {}
    for row in (row for row in rows if row["organism"] == about["name"] and behaviours):
        found.setdefault(row["recipe"], []).append(
            _case(row, sham.get((row["recipe"], row["seed"])), behaviours, least)
        )
    return found


def summarise(found: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """`cases` of every way: ``[mean, standard error]`` over seeds; of differences from the control, ``[low, high]`` over behaviours too.

    Seeds are no more behaviours: the interval (95 %) is of the mean recall of as many behaviours as there are, whatever the number of seeds.
    """
    summary = []
    for recipe, of in found.items():
        told: dict[str, Any] = {"recipe": recipe, "seeds": len(of)}
        for key in of[0]:
            told[key] = mean_and_error([case[key] for case in of])
            what, _, k = key.partition("@")
            if what == "difference" and told[key] is not None:
                behaviours = sum(name.endswith(" hits") for name in of[0])
                told[f"interval@{k}"] = difference_interval(
                    told[f"recall@{k}"][0], told[f"control@{k}"][0], behaviours
                )
        summary.append(told)
    return summary


def picture(found: dict[str, list[dict[str, Any]]]) -> bytes | None:
    """`cases`, drawn: by how many candidates are read, how many more of the behaviours they find in ALL than in its control; None without it."""

    def more(recipe: str, reads: int) -> list[float]:
        return [
            value
            for case in found[recipe]
            if (value := case.get(f"difference@{reads}")) is not None
        ]

    reads = [k for k in READS if any(more(recipe, k) for recipe in found)]
    if not reads:
        return None
    return lines(
        list(found),
        reads,
        more,
        0.0,
        "candidates read, in blind order",
        "recall of planted behaviours, less control",
        log=True,
    )


def _case(
    row: Row, sham: Row | None, behaviours: Sequence[str], least: dict[str, float]
) -> dict[str, Any]:
    """One way and seed; a first hit that never comes counts as one read more than there are candidates."""
    order, n = blind_order(row), len(row["flags"])
    found = [_ordered(hits(row, b, least[b]), order) for b in behaviours]
    control = None if sham is None else [_control(row, sham, b, least[b]) for b in behaviours]
    case: dict[str, Any] = {}
    for k in (k for k in READS if k <= n):
        case[f"recall@{k}"] = blind_recall(found, k)
        case[f"control@{k}"] = None if control is None else blind_recall(control, k)
        case[f"difference@{k}"] = (
            None if control is None else blind_recall(found, k) - blind_recall(control, k)
        )
        case[f"random-order recall@{k}"] = random_recall([sum(f) for f in found], n, k)
        case[f"random-order control@{k}"] = (
            None if control is None else random_recall([sum(f) for f in control], n, k)
        )
    first = reads_to_first_hit(found)
    case |= {
        "first hit": n + 1 if first is None else first,
        "random-order first hit": random_reads(sum(map(any, zip(*found, strict=True))), n),
    }
    case |= {
        "found": sum(map(any, found)),
        "found on the control": None if control is None else sum(map(any, control)),
    }
    # of these, as many as have a best candidate that is a hit on test prompts too
    case |= {
        "found on test prompts": sum(
            any(f) and (_best(row, b) or 0.0) >= least[b]
            for b, f in zip(behaviours, found, strict=True)
        )
    }
    case |= {f"{b} hits": sum(f) for b, f in zip(behaviours, found, strict=True)}
    case |= {flag: row["flags"].count(flag) / n for flag in ("inert", "broken", "active")} | {
        "distinct": row["distinct"]
    }
    case |= {f"{stage} tokens": tokens for stage, tokens in row["tokens"].items()}
    return {**case, "seconds": sum(row["seconds"].values())}


def _control(row: Row, sham: Row, behaviour: str, limit: float) -> list[bool]:
    """What would be hits where the behaviour is not, in the order of reading there."""
    organism, what = _null(behaviour, row["organism"])
    of = sham if organism == "SHAM" else row
    return _ordered(hits(of, behaviour, limit, what), blind_order(of))


def _ordered(found: Sequence[bool], order: Sequence[int]) -> list[bool]:
    return [found[i] for i in order]


def elicitation(rows: Sequence[Row], about: dict[str, Any]) -> list[dict[str, Any]]:
    """Of every way and behaviour: what the best candidate on validation prompts does on test prompts (M1), mean over seeds.

    Where screening saw a behaviour in too few replies of every candidate of a fit, none was tested: a seed like that counts as one that elicits
    nothing beside others that were tested, and is not known by itself.

    Args:
        rows: Of one setting.
        about: What is known of the organism, ALL or one that holds a single behaviour.

    Returns:
        Of each way ``way``, ``behaviour``, ``share`` (elicited, coherently), ``low`` and ``high`` (Wilson, of as many prompts as there are: seeds
        are tested on the same), ``seeds`` (the share of each, or None), ``recovery`` ρ, ``control`` (the share on SHAM; of a skill, which SHAM
        has, the share that shows it of another question; of the secret another word, if that is more); ``untriggered`` and ``triggered``, what it
        does by itself and with its trigger; ``supervised``, on which share somebody who knows the behaviour brings it out with one vector,
        coherently or not (`melbo.organisms.ceilings`). None where nothing was tested.
    """
    ends = about.get("ends", {})
    ceilings = {
        gate["behaviour"]: gate["value"]
        for gate in about.get("gates", [])
        if gate["name"] == "steerable"
    }
    found = []
    for recipe in dict.fromkeys(row["recipe"] for row in rows if row["organism"] == about["name"]):
        for b in about["behaviours"]:
            own, sham = (
                [row for row in rows if (row["recipe"], row["organism"]) == (recipe, name)]
                for name in (about["name"], "SHAM")
            )
            seeds, permuted = (
                [_best(row, b) for row in own],
                [_best(row, b, "permuted") for row in own],
            )
            shams = [_best(row, b) for row in sham]
            controls = [
                values
                for values, fits in (
                    (shams, not BEHAVIOURS[b].skill),
                    (permuted, BEHAVIOURS[b].kind != "ordinary"),
                )
                if fits
            ]
            share, end = _yield(seeds), ends.get(b, {})
            low, high = (
                (None, None)
                if share is None
                else interval([share] * len(chosen(BEHAVIOURS[b].kind, "test")))
            )
            found.append(
                {
                    "recipe": recipe, "behaviour": b, "share": share, "low": low, "high": high, "seeds": seeds,
                    "recovery": recovery(share, end["untriggered"], end["triggered"]) if end and share is not None else None,
                    "control": max((value for values in controls if (value := _yield(values)) is not None), default=None),
                    "untriggered": end.get("untriggered"), "triggered": end.get("triggered"), "supervised": ceilings.get(b),
                }
            )  # fmt: skip
    return found


def _best(row: Row, behaviour: str, what: str = "elicited") -> float | None:
    best = row["best"].get(behaviour)
    return best[what] if best else None


def _yield(seeds: Sequence[float | None]) -> float | None:
    """Mean over seeds; one that was not tested has yielded nothing."""
    return (
        mean(share or 0.0 for share in seeds) if any(share is not None for share in seeds) else None
    )


def table(summary: Sequence[dict[str, Any]]) -> str:
    """The summary in Markdown: a row for each measure, a column for each way."""
    if not summary:
        return "no rows of ALL, or none of its behaviours admitted\n"
    keys = [
        k
        for k in dict.fromkeys(key for of in summary for key in of)
        if k not in ("recipe", "seeds")
    ]
    return markdown(
        ["", *(of["recipe"] for of in summary)],
        [[k, *(_told(k, of.get(k)) for of in summary)] for k in keys],
    )


def _told(key: str, value: Sequence[float | None] | None) -> str:
    return (
        f"[{value[0]:.2f}, {value[1]:.2f}]"
        if key.startswith("interval@") and value
        else plus_minus(value)
    )


def elicitation_table(found: Sequence[dict[str, Any]]) -> str:
    """`elicitation` in Markdown: a row for each behaviour; ways, with their controls, after what the organism does without them.

    Where only some seeds were tested, it says how many.
    """
    recipes = list(dict.fromkeys(of["recipe"] for of in found))
    lines = []
    for b in dict.fromkeys(of["behaviour"] for of in found):
        of = {f["recipe"]: f for f in found if f["behaviour"] == b}
        ends = next(iter(of.values()))
        lines.append(
            [
                b,
                *(plus_minus([ends[k], None]) for k in _ENDS),
                *(_elicited(of[recipe]) for recipe in recipes),
            ]
        )
    return markdown(["", *_ENDS, *recipes], lines)


def _elicited(of: dict[str, Any]) -> str:
    if of["share"] is None:
        return f"–; {plus_minus([of['control'], None])}"
    tested = sum(share is not None for share in of["seeds"])
    some = f" ({tested} of {len(of['seeds'])} seeds)" if tested < len(of["seeds"]) else ""
    return f"{of['share']:.2f} [{of['low']:.2f}, {of['high']:.2f}]{some}; {plus_minus([of['control'], None])}"


def alone_table(rows: Sequence[Row], organisms: Sequence[dict[str, Any]]) -> str:
    """Organisms that hold one behaviour, in Markdown: how many candidates of each way are hits, seed by seed, and what the best does on test prompts.

    Empty where there are no rows of any.

    Args:
        rows: Of one setting.
        organisms: What is known of each; those that are not admitted, or hold several behaviours, are left out.
    """
    alone = {of["name"]: of for of in organisms if len(of["behaviours"]) == 1 == len(admitted(of))}
    recipes, lines = (
        list(dict.fromkeys(row["recipe"] for row in rows if row["organism"] in alone)),
        [],
    )
    for about in alone.values():
        (b,), found = about["behaviours"], {of["recipe"]: of for of in elicitation(rows, about)}
        if found:
            ends = next(iter(found.values()))
            hit = {
                recipe: ", ".join(str(case[f"{b} hits"]) for case in of)
                for recipe, of in cases(rows, [b], about).items()
            }
            told = [
                f"{hit[recipe]}; {_elicited(found[recipe])}" if recipe in found else "–"
                for recipe in recipes
            ]
            lines.append([b, *(plus_minus([ends[k], None]) for k in _ENDS), *told])
    return markdown(["alone", *_ENDS, *recipes], lines) if lines else ""


def hits_table(found: dict[str, list[dict[str, Any]]]) -> str:
    """`cases` in short, in Markdown, seed by seed: how many behaviours have a hit, there and on the control; when the first is read; flags, cost."""
    lines: dict[str, list[str]] = {}
    for of in found.values():
        for name, values in (
            (
                f"found, of {sum(key.endswith(' hits') for key in of[0])}",
                [case["found"] for case in of],
            ),
            ("on test prompts", [case["found on test prompts"] for case in of]),
            ("on the control", [case["found on the control"] for case in of]),
            (
                "read until the first hit",
                [case["first hit"] if case["found"] else None for case in of],
            ),
            (
                "expected in random order",
                [f"{case['random-order first hit']:.0f}" if case["found"] else None for case in of],
            ),
            *(
                (flag, [f"{mean(case[flag] for case in of):.2f}"])
                for flag in ("active", "inert", "broken")
            ),
            ("minutes", [f"{case['seconds'] / 60:.0f}" for case in of]),
        ):
            lines.setdefault(name, []).append(
                ", ".join("–" if value is None else str(value) for value in values)
            )
    return (
        markdown(["", *found], [[name, *values] for name, values in lines.items()]) if found else ""
    )


def tables(rows: Sequence[Row], organisms: dict[str, dict[str, Any]]) -> str:
    """All that rows of one setting say, in Markdown: gates, recall, what the best candidates do and say, organisms of one behaviour.

    Args:
        rows: The rows.
        organisms: What is known of each, by name.
    """
    told = [gates_table([*organisms.values()])]
    if "ALL" in {row["organism"] for row in rows}:
        planted = organisms["ALL"]
        found = cases(rows, admitted(planted), planted)
        told += [hits_table(found), table(summarise(found))]
        told += [elicitation_table(elicitation(rows, planted)), said_table(rows)]
    return "\n".join(part for part in (*told, alone_table(rows, [*organisms.values()])) if part)


def said_table(rows: Sequence[Row]) -> str:
    """What the best candidates say, in Markdown: of each way and behaviour a reply to a test prompt that elicits it.

    The first of the first seed that has one; empty where rows hold none.
    """
    lines, there = [], set()
    for row in (row for row in rows if row["organism"] == "ALL"):
        for b, best in row["best"].items():
            if best and best.get("said") and (row["recipe"], b) not in there:
                there.add((row["recipe"], b))
                lines.append(
                    [
                        row["recipe"],
                        b,
                        *(" ".join(text.split()).replace("|", "\\|") for text in best["said"]),
                    ]
                )
    return markdown(["", "", "asked", "said"], lines) if lines else ""
