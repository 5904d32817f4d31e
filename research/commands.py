"""Commands that measure: speed, planted behaviours, the published experiments, and their pages."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

import click
import torch

from melbo.audit.budget import TOKENS
from melbo.cli.options import (
    LOADING,
    as_json_option,
    causal_map,
    default_layers,
    file,
    folder,
    load,
    loading_options,
    speed_options,
    take,
)
from melbo.cli.show import say
from melbo.discovery.recipes import RECIPES
from melbo.errors import MelboError
from melbo.models.text import built_in
from melbo.records import ResultLog, environment, to_json, write_atomically
from research.audits.tables import AMPLIFIED
from research.audits.tables import ROWS as AUDITED
from research.audits.trial import BEHAVIOURS_OF, PERPLEXITY, WAYS, Trial
from research.compatibility.rows import ROWS, WRONG
from research.dictionaries.commands import dictionary
from research.experiments import EXPERIMENTS, run
from research.experiments.base import RESULTS, settings_file
from research.organisms import MADE, ORGANISMS, read_organisms
from research.organisms import RESULTS as ORGANISM_RESULTS
from research.organisms.collect import PAIR, TIERS, UNSTEERED, Job, collect
from research.organisms.discover import LAYERS
from research.organisms.evidence import Evidence
from research.organisms.gates import admitted, failures
from research.organisms.recall import cases, elicitation, summarise
from research.organisms.smoke import FLOOR, smoke
from research.organisms.tables import picture, tables
from research.pages import DOCS, page_tables, stale_pages, write_pages
from research.speed.measure import PARTS, measure_speed


@click.group(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
def cli() -> None:
    """Measure what melbo finds and how fast: planted behaviours, experiments, speed."""


cli.add_command(dictionary)


@cli.command()
@click.argument("model", default="smollm2")
@click.option("--prompt", default=built_in.FIT[0], help="The prompt.")
@click.option("--source", type=int, help="Layer to perturb; by default at 8/30 of the depth.")
@click.option("--target", type=int, help="Layer to read; by default at 20/30 of the depth.")
@click.option("-m", "--num-factors", default=128, help="Number of directions in a sweep.")
@click.option(
    "--repeats",
    type=click.IntRange(min=1),
    default=5,
    help="Number of repetitions of each measurement.",
)
@click.option(
    "--only",
    type=click.Choice(list(PARTS)),
    multiple=True,
    help="Measure this only; may be given again.",
)
@click.option(
    "--plain/--no-plain",
    default=True,
    help="Measure the plain formulation too (most of the time).",
)
@speed_options
@click.option("--out", type=file, help="JSON file to write.")
@loading_options
@as_json_option
def speed(model: str, prompt: str, out: Path | None, as_json: bool, **options: Any) -> None:
    """Measure how fast fits, calibration, derivatives and replies are on this machine."""
    how = take(options, "num_factors", "repeats", "only", "plain")
    lm = load(model, take(options, *LOADING))
    cmap = causal_map(lm, [prompt], options)
    threads, rows = torch.get_num_threads(), []
    for row in measure_speed(cmap, **how):
        rows.append(row.describe())
        if not as_json:
            click.echo(row.line(threads))
    result = {
        "environment": environment(),
        "model": lm.name,
        "map": cmap.describe(),
        **how,
        "threads": {threads: rows},
    }
    if out is not None:
        write_atomically({out: to_json(result)})
    if as_json:
        click.echo(json.dumps(result))


@cli.command()
@click.option(
    "--tier",
    type=click.Choice(["smoke", *TIERS]),
    default="laptop",
    help="Amount of work; smoke takes minutes, keeps nothing, and fails if discovery is broken.",
)
@click.option(
    "--organisms",
    "home",
    type=folder,
    default=MADE,
    show_default="research/organisms/made",
    help="Folder of the organisms.",
)
@click.option("--model", default="smollm2", help="Model that they were made from.")
@click.option("--source", type=int, help="Layer to perturb; by default at .4 of the depth.")
@click.option("--target", type=int, help="Layer to read; by default at .8 of the depth.")
@click.option(
    "--organism",
    "names",
    type=click.Choice(list(ORGANISMS)),
    multiple=True,
    help=f"Organism; may be given again; by default {' and '.join(PAIR)}.",
)
@click.option(
    "--recipe",
    "recipes",
    type=click.Choice([*RECIPES, *UNSTEERED]),
    multiple=True,
    help="Recipe; may be given again; by default all of the tier.",
)
@click.option(
    "-n",
    "--candidates",
    type=click.IntRange(min=2),
    help="Number of candidates of each recipe; by default "
    + ", ".join(f"{tier.candidates} ({name})" for name, tier in TIERS.items())
    + ".",
)
@click.option(
    "--seeds",
    type=click.IntRange(min=1),
    help="Number of fits of each recipe; by default 3.",
)
@click.option(
    "--out",
    type=folder,
    help="Folder for rows, table and picture; by default research/results/organisms. "
    "Rows that are there are not measured again.",
)
@as_json_option
def organisms(
    tier: str,
    home: Path,
    model: str,
    source: int | None,
    target: int | None,
    out: Path | None,
    as_json: bool,
    **given: Any,
) -> None:
    """Measure what recipes find of planted behaviours, and of none in a control."""
    usual = default_layers(load(model, {}), LAYERS)
    layers = (usual[0] if source is None else source, usual[1] if target is None else target)
    if tier == "smoke":
        _smoke(home, model, layers, as_json, {**given, "out": out})
        return
    names, chosen = given["names"] or PAIR, TIERS[tier]
    recipes = given["recipes"] or chosen.recipes
    candidates = given["candidates"] or chosen.candidates
    seeds = given["seeds"] or 3
    job = Job(home, model, tuple(names), tuple(recipes), candidates, seeds, *layers)
    out = out or ORGANISM_RESULTS
    rows = ResultLog(out / "rows.jsonl")
    for evidence in collect(job, rows):
        seconds = sum(evidence.seconds.values())
        say(f"{evidence.organism} {evidence.recipe} seed {evidence.seed}: {seconds:.0f} s")
    _show_organisms(home, job.known(rows), out, as_json)


def _smoke(
    home: Path, model: str, layers: tuple[int, int], as_json: bool, given: Mapping[str, Any]
) -> None:
    """Run the smoke tier.

    Raises:
        MelboError: An option is given that this tier does not have, or discovery is broken.
    """
    flags = {"names": "--organism", "recipes": "--recipe"}
    if fixed := [flags.get(name, f"--{name}") for name, value in given.items() if value]:
        raise MelboError(
            f"got {fixed[0]}: the smoke tier is one measurement, which keeps no rows; "
            "leave it out, or take the laptop tier"
        )
    reached = smoke(home, model, *layers)
    told = "  ".join(f"{name} {value:.3g}" for name, value in reached.items())
    click.echo(json.dumps(reached) if as_json else told)
    chance = max(FLOOR, reached["random on ALL"], reached["exponential on SHAM"])
    if reached["exponential on ALL"] <= chance:
        raise MelboError(
            "discovery is broken: learnt directions bring out no more of what is planted "
            "than random ones, or than on the control"
        )


def _show_organisms(home: Path, known: Sequence[Evidence], out: Path, as_json: bool) -> None:
    """Write and print table and picture of evidence, and warn of what it lacks."""
    if {(name, "random") for name in PAIR} - {(e.organism, e.recipe) for e in known}:
        say(
            "no random candidates of ALL and of SHAM among the rows yet: "
            "a hit is an elicitation of one half, whatever chance gives"
        )
    about = read_organisms(home)
    planted = about.get("ALL", {"name": "ALL", "behaviours": []})
    for organism in about.values():
        for line in failures(organism):
            say(line)
    if dropped := [b for b in planted["behaviours"] if b not in admitted(planted)]:
        say(f"not admitted, and left out of recall: {', '.join(dropped)} (see organism.json)")
    measures, text = cases(known, admitted(planted), planted), tables(known, about)
    write_atomically({out / "table.md": text.encode()})
    if drawn := picture(measures):
        write_atomically({out / "recall.png": drawn})
    else:
        (out / "recall.png").unlink(missing_ok=True)
    if not as_json:
        click.echo(text)
        return
    result = {
        "gates": {name: organism.get("gates", []) for name, organism in about.items()},
        "summary": summarise(measures),
        "best": [asdict(e) for e in elicitation(known, planted)],
    }
    click.echo(json.dumps(result))


@cli.command()
@click.argument("organisms", nargs=-1, required=True, type=click.Choice(list(BEHAVIOURS_OF)))
@click.option("--recipe", default="all", help="How they were trained.")
@click.option(
    "--way",
    "ways",
    multiple=True,
    type=click.Choice([*WAYS, PERPLEXITY]),
    default=["audit", "audit-base"],
    help="How to look for what is hidden; may be given again.",
)
@click.option("--seed", "seeds", multiple=True, type=int, default=[0], help="May be given again.")
@click.option("--budget", type=click.IntRange(min=1), default=TOKENS, help="Number of tokens.")
@click.option("--amplify", is_flag=True, help="Measure how often their themes can be brought out.")
@click.option(
    "--work", type=folder, default="runs/audits", help="Folder of replies; may be deleted after."
)
def audits(
    organisms: tuple[str, ...],
    recipe: str,
    ways: tuple[str, ...],
    seeds: tuple[int, ...],
    budget: int,
    amplify: bool,
    work: Path,
) -> None:
    """Audit ORGANISMS, whose hidden behaviours are known, and write what was named as rows.

    Rows that are there already are not made again. An audit that was cut off goes on.
    """
    log = ResultLog(AMPLIFIED if amplify else AUDITED)
    for organism, way, seed in product(organisms, ways, seeds):
        trial = Trial(organism, recipe, way, seed, budget)
        out = work / "-".join(map(str, trial.key.values()))
        if not log.of(trial.key):
            more = out.with_name(f"{out.name}-amplified")
            log.add(trial.amplify(out, more) if amplify else trial.run(out))
        row = log.of(trial.key)[0]
        click.echo(f"{organism} {way} {seed}: {row['themes' if amplify else 'reads']}")


@cli.command()
@click.argument("name", type=click.Choice(list(EXPERIMENTS)))
@click.option(
    "--config",
    type=file,
    help="TOML file with the settings; by default research/experiments/settings/NAME.toml.",
)
@click.option("--preset", default="laptop", help="Table of that file: laptop, paper.")
@click.option(
    "--out",
    type=folder,
    help="Folder for rows, table and picture; by default research/results/NAME. "
    "Rows that are there are not measured again.",
)
@click.option("--dry-run", is_flag=True, help="Say how much is left to measure, and stop.")
@as_json_option
def experiment(
    name: str, config: Path | None, preset: str, out: Path | None, dry_run: bool, as_json: bool
) -> None:
    """Run an experiment, or go on with it."""
    chosen = EXPERIMENTS[name].read(config or settings_file(name), preset)
    out = out or RESULTS / name
    if dry_run:
        total = len(chosen.cases)
        left = len(ResultLog(out / "rows.jsonl").missing(chosen.cases))
        told = f"{chosen.question} {left} of {total} cases to go in {out}"
        click.echo(json.dumps(chosen.describe()) if as_json else told)
        return
    for row in run(chosen, out):
        if as_json:
            click.echo(json.dumps(row))
    if not as_json:
        click.echo((out / "table.md").read_text(encoding="utf-8"))


@cli.command()
@click.option(
    "--out",
    type=file,
    default=ROWS,
    show_default="research/results/compatibility/rows.json",
    help="JSON file to write.",
)
@as_json_option
def compatibility(out: Path, as_json: bool) -> None:
    """Try every check on every kind of model; nothing is written where one is wrong.

    Raises:
        MelboError: One is wrong; names all that are.
    """
    # brings peft and accelerate
    from research.compatibility.measure import measure_all

    result = measure_all(say)
    wrong = [
        f"{row['model']}, {name}: {outcome}"
        for row in result["rows"]
        for name, outcome in row["checks"].items()
        if outcome.startswith(WRONG)
    ]
    if as_json:
        click.echo(json.dumps(result))
    if wrong:
        raise MelboError("; ".join(wrong))
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically({out: to_json(result) + b"\n"})


@cli.command()
@click.option("--docs", type=folder, default=DOCS, show_default="docs", help="Folder of the pages.")
@click.option("--check", is_flag=True, help="Write nothing, name stale pages, fail if there are.")
def pages(docs: Path, check: bool) -> None:
    """Write the tables of pages anew from the committed rows."""
    made = page_tables()
    names = stale_pages(docs, made) if check else write_pages(docs, made)
    for page in names:
        click.echo(f"{'stale' if check else 'written'}: {page}")
    if check and names:
        click.get_current_context().exit(1)
