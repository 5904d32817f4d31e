"""Commands that measure: how fast this is, whether it finds what is hidden, and the published experiments."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import torch

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
from melbo.cli.show import say, show_row
from melbo.discovery.recipes import RECIPES
from melbo.errors import MelboError
from melbo.models import prompts as built_in
from melbo.records import ResultLog, environment, to_json, write_atomically
from research.experiments import EXPERIMENTS, run
from research.organisms import ORGANISMS, read_organism
from research.organisms.collect import PAIR, TIERS, UNSTEERED, Job, collect
from research.organisms.discover import LAYERS
from research.organisms.evidence import (
    admitted,
    cases,
    elicitation,
    failures,
    picture,
    summarise,
    tables,
)
from research.organisms.smoke import FLOOR, smoke
from research.speed.measure import PARTS, measure_speed


@click.group(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
def cli() -> None:
    """Measure what melbo finds and how fast: planted behaviours, experiments, speed."""


@cli.command()
@click.argument("model", default="smollm2")
@click.option("--prompt", default=built_in.FIT[0], help="The prompt.")
@click.option("--source", type=int, help="Layer to perturb; by default at 8/30 of the depth.")
@click.option("--target", type=int, help="Layer to read; by default at 20/30 of the depth.")
@click.option("-m", "--num-factors", default=128, help="Directions in a sweep.")
@click.option(
    "--threads", type=click.IntRange(min=1), multiple=True, help="CPU threads; may be given again."
)
@click.option(
    "--repeats", type=click.IntRange(min=1), default=5, help="How often each thing is measured."
)
@click.option(
    "--only",
    type=click.Choice(list(PARTS)),
    multiple=True,
    help="Measure this only; may be given again.",
)
@click.option(
    "--reference/--no-reference",
    default=True,
    help="Measure the plain formulation too (most of the time).",
)
@speed_options
@click.option("--out", type=file, help="JSON file to write.")
@loading_options
@as_json_option
def speed(
    model: str, prompt: str, threads: Sequence[int], out: Path | None, as_json: bool, **options: Any
) -> None:
    """Measure how fast fit, calibration, derivatives and generation are on this machine, against its own matrix products."""
    how = take(options, "num_factors", "repeats", "only", "reference")
    lm = load(model, take(options, *LOADING))
    cmap = causal_map(lm, [prompt], options)
    found = {}
    for count in threads or (torch.get_num_threads(),):
        torch.set_num_threads(count)
        rows = []
        for row in measure_speed(cmap, **how):
            rows.append(row)
            if not as_json:
                show_row(row, count)
        found[count] = [row.describe() for row in rows]
    result = {
        "environment": environment(),
        "model": lm.name,
        "map": cmap.describe(),
        **how,
        "threads": found,
    }
    if out is not None:
        write_atomically({out: to_json(result)})
    if as_json:
        click.echo(json.dumps(result))


@cli.command()
@click.option(
    "--tier",
    type=click.Choice(["smoke", "laptop", "full"]),
    default="laptop",
    help="smoke: minutes, and fails if discovery breaks.",
)
@click.option(
    "--organisms", "home", type=folder, default=Path("benchmarks/organisms"), help="Where they are."
)
@click.option("--model", default="smollm2", help="What they were made from.")
@click.option("--source", type=int, help="Layer to perturb; by default at .4 of the depth.")
@click.option("--target", type=int, help="Layer to read; by default at .8 of the depth.")
@click.option(
    "--organism",
    "names",
    type=click.Choice(list(ORGANISMS)),
    multiple=True,
    help=f"May be given again; by default {' and '.join(PAIR)}.",
)
@click.option(
    "--recipe",
    "recipes",
    type=click.Choice([*RECIPES, *UNSTEERED]),
    multiple=True,
    help="May be given again; by default those of the tier.",
)
@click.option(
    "-n",
    "--candidates",
    type=click.IntRange(min=2),
    help="How many candidates of each way; by default 128, of the full tier 512.",
)
@click.option(
    "--seeds", type=click.IntRange(min=1), help="How many fits of each way; by default 3."
)
@click.option(
    "--out",
    type=folder,
    help="Folder for rows, one a fit, table and picture; by default results beside the organisms. What is there is not done again.",
)
@as_json_option
def organisms(
    tier: str, home: Path, model: str, source: int | None, target: int | None, names: Sequence[str], recipes: Sequence[str], candidates: int | None,
    seeds: int | None, out: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Does discovery find planted behaviours? Every way on organisms and on a control, with recall, reads to the first hit, and cost."""
    usual = default_layers(load(model, {}), LAYERS)
    source, target = usual[0] if source is None else source, usual[1] if target is None else target
    if tier == "smoke":
        given = {
            "--organism": names,
            "--recipe": recipes,
            "--candidates": candidates,
            "--seeds": seeds,
            "--out": out,
        }
        if fixed := [name for name, value in given.items() if value]:
            raise MelboError(
                f"got {fixed[0]}: the smoke tier is one measurement, which keeps no rows; leave it out, or take the laptop tier"
            )
        found = smoke(home, model, source, target)
        broken = found["exponential on ALL"] <= max(
            FLOOR, found["random on ALL"], found["exponential on SHAM"]
        )
        click.echo(
            json.dumps(found)
            if as_json
            else "  ".join(f"{name} {value:.3g}" for name, value in found.items())
        )
        if broken:
            raise MelboError(
                "discovery is broken: learnt directions bring out no more of what is planted than random ones, or than on the control"
            )
        return
    out = out or home / "results"
    chosen = TIERS[tier]
    job = Job(
        home,
        model,
        tuple(names) or PAIR,
        tuple(recipes) or chosen.recipes,
        candidates or chosen.candidates,
        seeds or 3,
        source,
        target,
    )
    rows = ResultLog(out / "rows.jsonl")
    for row in collect(job, rows):
        say(
            f"{row['organism']} {row['recipe']} seed {row['seed']}: {sum(row['seconds'].values()):.0f} s"
        )
    known = job.known(rows)
    if {(name, "random") for name in PAIR} - {(row["organism"], row["recipe"]) for row in known}:
        say(
            "no random candidates of ALL and of SHAM among the rows yet: a hit is an elicitation of one half, whatever chance gives"
        )
    about = {name: read_organism(home / name) for name in ORGANISMS if (home / name).is_dir()}
    planted = about.get("ALL", {"name": "ALL", "behaviours": []})
    for line in (line for of in about.values() for line in failures(of)):
        say(line)
    if dropped := [b for b in planted["behaviours"] if b not in admitted(planted)]:
        say(f"not admitted, and left out of recall: {', '.join(dropped)} (see organism.json)")
    each, text = cases(known, admitted(planted), planted), tables(known, about)
    write_atomically({out / "table.md": text.encode()})
    if drawn := picture(each):
        write_atomically({out / "recall.png": drawn})
    else:
        (out / "recall.png").unlink(missing_ok=True)
    if as_json:
        click.echo(
            json.dumps(
                {
                    "gates": {name: of.get("gates", []) for name, of in about.items()},
                    "summary": summarise(each),
                    "best": elicitation(known, planted),
                }
            )
        )
    else:
        click.echo(text)


@cli.command()
@click.argument("name", type=click.Choice(list(EXPERIMENTS)))
@click.option(
    "--config", type=file, help="TOML file with its settings; by default experiments/NAME.toml."
)
@click.option("--scale", default="laptop", help="Which table of that file: laptop, paper.")
@click.option(
    "--out",
    type=folder,
    help="Folder for rows, table and picture; by default docs/results/NAME. What is there is not done again.",
)
@click.option(
    "--dry-run", is_flag=True, help="Read the settings, say what would be measured, and stop."
)
@as_json_option
def experiment(
    name: str, config: Path | None, scale: str, out: Path | None, dry_run: bool, as_json: bool
) -> None:
    """Run an experiment, or go on with it."""
    chosen = EXPERIMENTS[name].read(config or Path("experiments") / f"{name}.toml", scale)
    out = out or Path("docs/results") / name
    if dry_run:
        left = len(ResultLog(out / "rows.jsonl").missing(chosen.cases))
        click.echo(
            json.dumps(vars(chosen))
            if as_json
            else f"{chosen.question} {left} of {len(chosen.cases)} cases to go in {out}"
        )
        return
    for row in run(chosen, out):
        if as_json:
            click.echo(json.dumps(row))
    if not as_json:
        click.echo((out / "table.md").read_text(encoding="utf-8"))
