"""Recall and elicitation: the sum of what rows of evidence say.

How much each recipe finds, how soon, how much of it is there by chance, and what its best
candidates do.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

from melbo.evaluation.scores import FLAGS
from melbo.maths.statistics import interval, mean_and_error
from research.organisms.behaviours import BEHAVIOURS
from research.organisms.evidence import Evidence, of_organism
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
from research.organisms.splits import SPLITS

#: Numbers of candidates read.
READS = (1, 8, 32, 128, 512)
#: Measures of one fit, by their names in tables.
Case = dict[str, Any]


def limits(
    evidence: Sequence[Evidence], behaviours: Sequence[str], about: dict[str, Any]
) -> dict[str, float]:
    """Share from which a candidate is a hit on each behaviour.

    More than random candidates reach on the control, or, for a skill, held against another
    question; at least one half, or as much of what the trigger adds as `Behaviour.gap` asks for.

    Args:
        evidence: Evidence of one setting.
        behaviours: Names of behaviours.
        about: The organism (`research.organisms.read_organism`).
    """
    least_shares, ends = {}, about.get("ends", {})
    for b in behaviours:
        organism, what = _null(b, about["name"])
        null = [e for e in of_organism(evidence, organism) if e.recipe == "random"]
        gap, least = BEHAVIOURS[b].gap, HIT
        if gap is not None and b in ends:
            untriggered = ends[b]["untriggered"]
            least = untriggered + gap * (ends[b]["triggered"] - untriggered)
        least_shares[b] = threshold([share for e in null for share in e.shares(b, what)], least)
    return least_shares


def _null(behaviour: str, organism: str) -> tuple[str, str]:
    """The null for a behaviour, as an organism and a share of `Evidence.shares`.

    SHAM; for a skill, which SHAM has too, replies of the organism held against another question.
    """
    return (organism, "permuted") if BEHAVIOURS[behaviour].skill else ("SHAM", "elicited")


def cases(
    evidence: Sequence[Evidence], behaviours: Sequence[str], about: dict[str, Any]
) -> dict[str, list[Case]]:
    """Measures of every fit, seed by seed, by recipe.

    Recall on the organism and on its control, reads to the first hit, shares of flags, cost.

    Args:
        evidence: Evidence of one setting.
        behaviours: Behaviours that count, usually those that are admitted.
        about: The organism (`research.organisms.read_organism`).
    """
    least = limits(evidence, behaviours, about)
    sham = {(e.recipe, e.seed): e for e in of_organism(evidence, "SHAM")}
    measures: dict[str, list[Case]] = {}
    for e in of_organism(evidence, about["name"]) if behaviours else []:
        case = _case(e, sham.get((e.recipe, e.seed)), behaviours, least)
        measures.setdefault(e.recipe, []).append(case)
    return measures


def _case(
    e: Evidence, sham: Evidence | None, behaviours: Sequence[str], least: dict[str, float]
) -> Case:
    """Measures of one fit."""
    n = e.candidates
    hits = [e.hits(b, least[b]) for b in behaviours]
    control = None
    if sham is not None:
        control = [_control(e, sham, b, least[b]) for b in behaviours]
    # behaviours whose best candidate is a hit on test prompts too
    again = [(e.on_test(b) or 0.0) >= least[b] for b in behaviours]
    first = reads_to_first_hit(hits)
    return {
        **_recalls(hits, control, n),
        # one read more than there are candidates where there is no hit
        "first hit": n + 1 if first is None else first,
        "random-order first hit": random_reads(sum(map(any, zip(*hits, strict=True))), n),
        "found": sum(map(any, hits)),
        "found on the control": None if control is None else sum(map(any, control)),
        "found on test prompts": sum(
            any(each) and tested for each, tested in zip(hits, again, strict=True)
        ),
        **{f"{b} hits": sum(each) for b, each in zip(behaviours, hits, strict=True)},
        **{flag: e.screened.flags.count(flag) / n for flag in FLAGS},
        "distinct": e.screened.distinct,
        **{f"{stage} tokens": tokens for stage, tokens in e.tokens.items()},
        "seconds": sum(e.seconds.values()),
    }


def _control(e: Evidence, sham: Evidence, behaviour: str, limit: float) -> list[bool]:
    """Hits where the behaviour is not, in the order of reading there."""
    organism, what = _null(behaviour, e.organism)
    return (sham if organism == "SHAM" else e).hits(behaviour, limit, what)


def _recalls(hits: list[list[bool]], control: list[list[bool]] | None, n: int) -> Case:
    """Recall among the first k of n candidates, there and on the control."""
    case: Case = {}
    for k in (k for k in READS if k <= n):
        case[f"recall@{k}"] = blind_recall(hits, k)
        control_recall = None if control is None else blind_recall(control, k)
        case[f"control@{k}"] = control_recall
        case[f"difference@{k}"] = (
            None if control_recall is None else case[f"recall@{k}"] - control_recall
        )
        case[f"random-order recall@{k}"] = random_recall(list(map(sum, hits)), n, k)
        case[f"random-order control@{k}"] = (
            None if control is None else random_recall(list(map(sum, control)), n, k)
        )
    return case


def summarise(measures: dict[str, list[Case]]) -> list[Case]:
    """`cases` of every recipe in one: ``[mean, standard error]`` over seeds.

    Differences from the control get ``[low, high]`` too, the 95 % interval of the mean recall over
    as many behaviours as there are. More seeds do not narrow it: they are no more behaviours.

    Args:
        measures: Measures of every fit, by recipe.
    """
    summary = []
    for recipe, fits in measures.items():
        row: Case = {"recipe": recipe, "seeds": len(fits)}
        behaviours = sum(name.endswith(" hits") for name in fits[0])
        for key in fits[0]:
            row[key] = mean_and_error([case[key] for case in fits])
            what, _, k = key.partition("@")
            if what == "difference" and row[key] is not None:
                recall, control = row[f"recall@{k}"][0], row[f"control@{k}"][0]
                row[f"interval@{k}"] = difference_interval(recall, control, behaviours)
        summary.append(row)
    return summary


@dataclass(frozen=True)
class Elicitation:
    """A behaviour elicited by the best candidates of a recipe (M1), mean over seeds.

    Candidates are the best on validation prompts, and shares are of test prompts; None where
    nothing was tested.

    Attributes:
        recipe: Name of the recipe.
        behaviour: Name of the behaviour.
        share: Share of replies that show it coherently.
        low: Lower end of its Wilson interval, for as many prompts as there are: seeds are tested on
            the same ones.
        high: Upper end of that interval.
        seeds: Share of each seed.
        recovery: ρ.
        control: Share on SHAM; for a skill, which SHAM has too, the share held against another
            question; for the secret, held against another word if that is more.
        untriggered: Share without candidate and trigger.
        triggered: Share with the trigger.
        supervised: Share that one vector reaches which knows the behaviour, coherent or not
            (`research.organisms.ceilings`).
    """

    recipe: str
    behaviour: str
    share: float | None
    low: float | None
    high: float | None
    seeds: list[float | None]
    recovery: float | None
    control: float | None
    untriggered: float | None
    triggered: float | None
    supervised: float | None


def elicitation(evidence: Sequence[Evidence], about: dict[str, Any]) -> list[Elicitation]:
    """Elicitation of every behaviour by every recipe.

    Where screening saw a behaviour in too few replies of every candidate of a fit, none was tested:
    such a seed counts as one that elicits nothing beside others that were tested, and is not known
    by itself.

    Args:
        evidence: Evidence of one setting.
        about: The organism (`research.organisms.read_organism`), ALL or one of a single behaviour.
    """
    ends, own = about.get("ends", {}), of_organism(evidence, about["name"])
    sham = of_organism(evidence, "SHAM")
    ceilings = {
        gate["behaviour"]: gate["value"]
        for gate in about.get("gates", [])
        if gate["name"] == "steerable"
    }
    elicitations = []
    for recipe in dict.fromkeys(e.recipe for e in own):
        fits, shams = ([e for e in each if e.recipe == recipe] for each in (own, sham))
        for b in about["behaviours"]:
            seeds, end = [e.on_test(b) for e in fits], ends.get(b, {})
            share = _mean(seeds)
            low = high = rho = None
            if share is not None:
                low, high = interval([share] * len(SPLITS.prompts(BEHAVIOURS[b].kind, "test")))
                if end:
                    rho = recovery(share, end["untriggered"], end["triggered"])
            elicited = Elicitation(
                recipe=recipe,
                behaviour=b,
                share=share,
                low=low,
                high=high,
                seeds=seeds,
                recovery=rho,
                control=_on_control(fits, shams, b),
                untriggered=end.get("untriggered"),
                triggered=end.get("triggered"),
                supervised=ceilings.get(b),
            )
            elicitations.append(elicited)
    return elicitations


def _on_control(fits: Sequence[Evidence], shams: Sequence[Evidence], b: str) -> float | None:
    """Share of the null for a behaviour; the larger one where there are two."""
    controls = []
    if not BEHAVIOURS[b].skill:
        controls.append(_mean([e.on_test(b) for e in shams]))
    if BEHAVIOURS[b].kind != "ordinary":
        controls.append(_mean([e.on_test(b, "permuted") for e in fits]))
    return max((share for share in controls if share is not None), default=None)


def _mean(seeds: Sequence[float | None]) -> float | None:
    """Mean over seeds, where one that was not tested has elicited nothing."""
    if all(share is None for share in seeds):
        return None
    return mean(share or 0.0 for share in seeds)
