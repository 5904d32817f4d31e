"""Orders that need no reply: how many candidates are read in each until the first hit.

``python -m research.speed.orders`` fits the organism ALL again from the seeds of the committed
evidence (`research/results/organisms/rows.jsonl`), takes the hits from there, prints the table of
docs/results/organisms.md and writes ``research/results/speed/orders.json``, a fit at a time (twenty
minutes of one core). α² is read twice, with the strengths of the fit and with strengths of either
sign.
"""

import json
from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

import torch
from torch import Tensor

from melbo import CausalMap, Prompts, fit
from melbo.discovery.recipes import MELBO_STEPS, RECIPES, FeatureSearch
from melbo.evaluation.tables import markdown
from melbo.maths.transcoder import exponential_factors
from melbo.records import ResultLog, environment
from research.organisms import MADE, RESULTS, load_organism, read_organism
from research.organisms.collect import PAIR, Job
from research.organisms.discover import DISCOVERY
from research.organisms.evidence import Evidence
from research.organisms.gates import admitted
from research.organisms.metrics import random_reads
from research.organisms.recall import limits
from research.organisms.tables import PUBLISHED_LAYERS
from research.speed.results import RESULTS as SPEED_RESULTS
from research.speed.results import save

_CANDIDATES, _SEEDS = 128, 3
# recipes with hits, the dearest last
_LEARNT = ("exponential", "soft", "melbo", "linear", "quadratic")
# those whose strengths are of the exponential transcoder
_EXPONENTIAL = ("exponential", "soft", "melbo")
_FREE = "alpha, either sign"
_ORDERS = {
    "novel": "novelty",
    "effect": "‖Δ‖",
    "alpha": "α²",
    _FREE: "α² of either sign",
    "random": "random order",
}
_OUT = SPEED_RESULTS / "orders.json"

Row = dict[str, Any]


def first_place(scores: Tensor, hits: Sequence[bool]) -> int:
    """Place of the first hit among candidates in descending order of a score, from 1.

    Args:
        scores: A number for each candidate; of equal ones the earlier candidate is read first.
        hits: Whether each candidate is a hit; one at least is.
    """
    order = scores.argsort(descending=True, stable=True).tolist()
    return [hits[i] for i in order].index(True) + 1


def measure(search: FeatureSearch, evidence: Evidence, hits: Sequence[bool]) -> Row:
    """Fit a recipe again and find the first hit in each order.

    Args:
        search: The search, at the scale of the evidence.
        evidence: The evidence.
        hits: Whether each candidate is a hit, by its index.
    """
    recipe = RECIPES[evidence.recipe]
    assert recipe.method is not None
    m = len(hits) if recipe.signed else len(hits) // 2
    used = search.stacked if recipe.stacked else search.map
    fitted = fit(used, recipe.method(m, search.scale, MELBO_STEPS), seed=evidence.seed)
    V, alpha = fitted.features.V, fitted.features.alpha
    strengths = {"alpha": alpha}
    row: Row = {"sweeps": len(fitted.history)}
    if evidence.recipe in _EXPONENTIAL:
        D = used.value(search.scale * V.to(used.device, used.dtype)).cpu()
        free = exponential_factors(V, D, nonnegative=False)
        strengths[_FREE] = free.alpha
        row |= {
            "not zero": int((alpha > 0).sum()),
            "negative if free": int((free.alpha < 0).sum()),
            "explained": [fitted.stats["explained"], free.explained],
        }
    if not recipe.signed:
        # v and −v have one strength, and are read one after the other
        V = torch.cat([V, search.map.opposite(V)])
        strengths = {name: torch.cat([each, each]) for name, each in strengths.items()}
    effect = search.map.value(search.scale * V.to(used.device, used.dtype)).norm(dim=-1).cpu()
    scores = {name: each.square() for name, each in strengths.items()} | {"effect": effect}
    places = {name: first_place(score, hits) for name, score in scores.items()}
    every = {"novel": [hits[i] for i in evidence.order].index(True) + 1, **places}
    return {**row, "places": {**every, "random": random_reads(sum(hits), len(hits))}}


def known(recipes: tuple[str, ...]) -> list[tuple[Evidence, list[bool]]]:
    """Committed evidence of some recipes with a hit, each with the candidates that are one.

    Args:
        recipes: Names of recipes.
    """
    log = ResultLog(RESULTS / "rows.jsonl")
    job = Job(MADE, "smollm2", PAIR, recipes, _CANDIDATES, _SEEDS, *PUBLISHED_LAYERS)
    about, evidence = read_organism(MADE / "ALL"), job.known(log)
    least = limits(evidence, admitted(about), about)
    found = []
    for e in evidence:
        shares = [[x >= limit for x in e.shares(b)] for b, limit in least.items()]
        hits = [any(each) for each in zip(*shares, strict=True)]
        if e.organism == "ALL" and e.recipe in recipes and any(hits):
            found.append((e, hits))
    return sorted(found, key=lambda each: recipes.index(each[0].recipe))


def table(rows: Mapping[str, Row]) -> str:
    """A line for each fit, and one for the means of those orders that all have.

    Args:
        rows: Rows of the file.
    """
    head = ["", *_ORDERS.values(), "α > 0"]
    lines = []
    for name, row in rows.items():
        cells = [f"{row['places'][o]:.0f}" if o in row["places"] else "–" for o in _ORDERS]
        lines.append([name, *cells, str(row.get("not zero", "–"))])
    means = (
        f"{mean(row['places'][o] for row in rows.values()):.0f}" if o != _FREE else "–"
        for o in _ORDERS
    )
    return markdown(head, [*lines, ["mean", *means, "–"]])


def main() -> None:
    """Measure the fits that the file does not hold yet."""
    torch.set_num_threads(1)
    rows: dict[str, Row] = {}
    if _OUT.exists():
        rows = json.loads(_OUT.read_text(encoding="utf-8"))["rows"]
    lm = load_organism(MADE / "ALL")
    cmap = CausalMap(lm, Prompts.chat(lm, DISCOVERY), *PUBLISHED_LAYERS)
    for evidence, hits in known(_LEARNT):
        name = f"{evidence.recipe}, seed {evidence.seed}"
        if name not in rows:
            rows[name] = measure(FeatureSearch(cmap, evidence.scale), evidence, hits)
            save("orders", {"environment": environment(), "rows": rows})
    print(table(rows))


if __name__ == "__main__":
    main()
