"""The command line: a thin shell over load, calibrate, fit, rank, generate and report."""

import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text
from transformers.utils import logging

from . import prompts as built_in
from .bench import PARTS, Row, environment
from .bench import bench as measure
from .calibrate import calibrate as find_scale
from .causal_map import CausalMap
from .chat import Chat
from .errors import MelboError
from .features import FeatureSet, read_run, refuse_existing, to_json, write_whole
from .fit import Fit
from .fit import fit as learn
from .generate import generate
from .load import load
from .methods import METHODS
from .model import LanguageModel
from .prompts import Prompts
from .rank import ORDERS, Ranking
from .rank import rank as order
from .report import report as write_report

_LOADING = ("dtype", "device", "tf32", "device_map", "trust_remote_code", "blocks")
_METHOD = ("num_factors", "scale", "max_steps", "tol", "steps", "together", "orthogonalise", "start")
_Options = dict[str, Any]


class _Commands(click.Group):
    """Lists the commands in the order in which one uses them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of the commands."""
        return list(self.commands)


def main() -> None:
    """Entry point: bad input is one line on standard error and exit code 2, never a traceback."""
    try:
        sys.exit(cli(standalone_mode=False) or 0)
    except click.exceptions.NoArgsIsHelpError as err:
        _say(err.format_message())
        sys.exit(2)
    except click.UsageError as err:
        command = err.ctx.command_path if err.ctx else "melbo"
        _fail(f"{err.format_message()} (see {command} --help)")
    except (MelboError, click.ClickException) as err:
        _fail(str(err))
    except torch.OutOfMemoryError as err:
        _fail(f"out of memory ({str(err).splitlines()[0]}): use fewer or shorter prompts, a smaller dtype, or another device")
    except (KeyboardInterrupt, click.Abort):
        _say("interrupted")
        sys.exit(130)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.version_option(package_name="melbo")
def cli() -> None:
    """Find hidden behaviours of language models without labels."""


def _together(*options: Callable) -> Callable:
    """Several options as one decorator."""

    def decorate(command: Callable) -> Callable:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


_folder = click.Path(file_okay=False, path_type=Path)
_file = click.Path(dir_okay=False, path_type=Path)
_json = click.option("--json", "as_json", is_flag=True, help="Print JSON on standard output, and nothing else there.")
_seed = click.option("--seed", type=click.IntRange(0, 2**63 - 1), default=0, help="Of everything random.")
_loading = _together(
    click.option("--dtype", default="auto", help="What to compute in: auto (the checkpoint's own), float32, bfloat16, float16."),
    click.option("--device", help="Where to put the model; by default a GPU if there is one."),
    click.option("--tf32", is_flag=True, help="Let a GPU multiply float32 matrices at TF32 precision: three digits, several times faster."),
    click.option("--device-map", help="Passed to transformers; 'auto' spreads a large model over devices."),
    click.option("--trust-remote-code", is_flag=True, help="Run code that the checkpoint brings along."),
    click.option("--blocks", help="Dotted path of the decoder blocks, where it is not found by itself."),
)
_run = _together(
    click.argument("run", type=click.Path(path_type=Path)),
    click.option("--model", help="Where the run's model is now, if it has moved."),
    _loading,
)
_prompts = _together(
    click.option("--prompt", "prompt", multiple=True, help="A prompt; may be given again."),
    click.option("--prompts", "prompt_file", type=_file, help="A file with one prompt a line."),
)
_speed = _together(
    click.option("--tokens-per-pass", type=click.IntRange(min=1), help="Tokens run at a time; by default what half the free memory holds."),
    click.option("--compile/--no-compile", default=None, help="Compile the blocks; by default on a CPU once that pays."),
)
_map = _together(
    click.argument("model"),
    _prompts,
    click.option("--system", help="System message; by default the chat template's own."),
    click.option("--text", is_flag=True, help="Read the prompts as they are, without a chat template."),
    click.option("--source", type=int, help="Layer to perturb; by default at 8/30 of the depth."),
    click.option("--target", type=int, help="Layer to read; by default at 20/30 of the depth."),
    click.option("--target-tokens", default=3, help="How many of the last tokens are read."),
    click.option("--skip-first", is_flag=True, help="Leave the first token, the attention sink, unsteered."),
    click.option("--normalise-target", is_flag=True, help="Read h/‖h‖: guards against features that blow up norms."),
    click.option("--concatenate", is_flag=True, help="Stack prompts and tokens instead of averaging them."),
    click.option("--positions", default="all", type=click.Choice(["all", "target"]), help="Steer every token, or (fast) only those that are read."),
    _speed,
    _loading,
)


@cli.command()
@click.option("--out", type=_folder, default=Path("runs/demo"), help="Folder for the run.")
@click.option("--force", is_flag=True, help="Replace a run that is there already.")
def demo(out: Path, force: bool) -> None:
    """Find latent behaviours of the bundled model, from one prompt, in a few minutes."""
    refuse_existing(out, force)
    _say(f"1/4  loading SmolLM2-135M-Instruct; one prompt: {built_in.FIT[0]!r}")
    lm = _load("smollm2", {})
    cmap = _causal_map(lm, built_in.FIT, {"source": 8, "target": 20})
    _say("2/4  calibrating the scale, then learning 64 directions at layer 8 that change layer 20 most")
    fitted = _fit_run(cmap, "exponential", {"num_factors": 64}, 0, out, force)
    _stop_if_interrupted(fitted, out)
    _say("3/4  generating with every direction, and with 32 random ones as the control")
    ranking = _rank_run(lm, out, built_in.VALIDATION, built_in.HELD_OUT, max_new_tokens=24)
    _say("4/4  what they make the model say")
    _show(ranking, 12)
    click.echo(f"\nTalk to a feature:   melbo chat {out} --feature {ranking.features[0].index}")
    click.echo(f"Read everything:     {(out / 'report.html').resolve()}")


@cli.command()
@_map
@click.option("--method", default="exponential", type=click.Choice(list(METHODS)), help="How to learn.")
@click.option("-m", "--num-factors", default=64, help="How many directions.")
@click.option("--scale", type=float, help="R, the norm of a perturbation; by default calibrated.")
@click.option("--max-steps", type=int, help="Sweeps at most (iterative methods; their default is 10).")
@click.option("--tol", type=float, help="When to stop.")
@click.option("--steps", type=int, help="Gradient steps of each vector (melbo; its default is 300).")
@click.option("--together", type=int, help="Vectors trained in one batch (melbo; 16 by default, 1 is one after the other).")
@click.option("--orthogonalise", type=click.Choice(["qr", "polar", "soft"]), help="How directions are pushed apart.")
@click.option("--start", type=click.Choice(["projected", "backward"]), help="Where the exponential method starts.")
@click.option("--out", type=_folder, required=True, help="Folder for the run.")
@click.option("--force", is_flag=True, help="Replace a run that is there already.")
@_seed
@_json
def fit(model: str, method: str, out: Path, force: bool, seed: int, as_json: bool, **options: Any) -> None:
    """Learn features of MODEL (smollm2, a hub id, a folder or a .gguf file) from a few prompts."""
    settings = _settings_for(method, _take(options, *_METHOD))
    refuse_existing(out, force)
    texts = _read_prompts(options)
    lm = _load(model, _take(options, *_LOADING))
    fitted = _fit_run(_causal_map(lm, texts, options), method, settings, seed, out, force)
    if as_json:
        summary = {
            "run": str(out),
            "scale": fitted.features.scale,
            "status": fitted.status.name.lower(),
            "stats": fitted.stats,
            "history": fitted.history,
        }
        click.echo(json.dumps(summary))
    else:
        click.echo(
            f"{len(fitted.features)} features at R = {fitted.features.scale:.4g} explain {fitted.stats['explained']:.4g}; {fitted.status.remedy}"
        )
        click.echo(f"saved to {out}; next: melbo rank {out}")
    _stop_if_interrupted(fitted, out)


@cli.command()
@_map
@click.option("--nonlinearity", default=0.5, help="λ: how large the non-linear remainder is to be, relative to the linear part.")
@_seed
@_json
def calibrate(model: str, nonlinearity: float, seed: int, as_json: bool, **options: Any) -> None:
    """Find the scale R at which MODEL's response becomes half non-linear."""
    texts = _read_prompts(options)
    lm = _load(model, _take(options, *_LOADING))
    found = find_scale(_causal_map(lm, texts, options), nonlinearity, seed=seed)
    if as_json:
        click.echo(json.dumps(found.describe()))
        return
    for scale, ratio in sorted(found.curve + found.solved[-1:]):
        click.echo(f"R = {scale:9.4g}   non-linear / linear = {ratio:.3f}  {'█' * min(60, round(40 * ratio))}")
    click.echo(f"R = {found.scale:.4g}" + (f", {found.relative:.2f} of the stream's median norm" if found.relative else ""))
    if found.warning:
        _say(f"warning: {found.warning}")


@cli.command()
@_run
@click.option("--by", default="novel", type=click.Choice(list(ORDERS)), help="What to order by.")
@click.option("--contrast", nargs=2, metavar="A B", help="Two strings: logit(A) − logit(B) at the first token of the reply.")
@click.option("--validation", type=_file, help="Prompts to choose the order on, one a line; built-in ones by default.")
@click.option("--held-out", type=_file, help="Prompts to report on, one a line; built-in ones by default.")
@click.option("--controls", "num_controls", default=32, help="How many random vectors to take through the same.")
@click.option("--max-new-tokens", type=click.IntRange(min=1), default=32, help="Length of a reply at most.")
@click.option("--batch-size", default=128, help="Rows decoded together; halved by itself when memory runs out.")
@click.option("--top", default=12, help="How many features to print.")
@_seed
@_json
def rank(run: Path, model: str | None, validation: Path | None, held_out: Path | None, top: int, as_json: bool, **options: Any) -> None:
    """Order the features of RUN by what they do on new prompts, beside random vectors."""
    choose = _read_file(validation) if validation else built_in.VALIDATION
    tell = _read_file(held_out) if held_out else built_in.HELD_OUT
    lm = _load_for(run, model, options)
    ranking = _rank_run(lm, run, choose, tell, **options)
    if as_json:
        click.echo(json.dumps(ranking.describe()))
        return
    _show(ranking, top)
    click.echo(f"\nRead everything:     {(run / 'report.html').resolve()}")


@cli.command()
@_run
@_prompts
@click.option("--feature", "features", type=int, multiple=True, help="Which feature; may be given again. All by default.")
@click.option("--strength", default=1.0, help="Multiple of the scale; negative pushes the other way.")
@click.option("--max-new-tokens", type=click.IntRange(min=1), default=64, help="Length of a reply at most.")
@_json
def sample(run: Path, model: str | None, features: Sequence[int], strength: float, max_new_tokens: int, as_json: bool, **options: Any) -> None:
    """Print what features of RUN make the model say, the unsteered reply first."""
    texts = _read_prompts(options)
    lm = _load_for(run, model, options)
    bank = FeatureSet.load(run, lm)
    chosen = [bank.check_index(i) for i in features] or list(range(len(bank)))
    table = generate(lm, _prompts_like(bank, lm, texts), bank[chosen], max_new_tokens=max_new_tokens, strength=strength)
    for c in table:
        index = None if c.feature is None else chosen[c.feature]
        if as_json:
            row = {"prompt": c.prompt_text, "feature": index, "strength": 0.0 if index is None else strength, "text": c.text}
            click.echo(json.dumps(row, ensure_ascii=False))
        else:
            label = click.style(f"\n{c.prompt_text}\nunsteered", bold=True) if index is None else click.style(f"feature {index}", fg="cyan")
            click.echo(f"{label}: {c.text.strip() or '(empty reply)'}")


@cli.command()
@_run
@click.option("--feature", type=int, help="Feature to begin with; by default none.")
@click.option("--strength", default=1.0, help="Multiple of the scale.")
@click.option("--max-new-tokens", type=click.IntRange(min=1), default=256, help="Length of a reply at most.")
def chat(run: Path, model: str | None, feature: int | None, strength: float, max_new_tokens: int, **options: Any) -> None:
    """Talk to the model of RUN while a feature steers it; /help lists what can be changed on the way."""
    lm = _load_for(run, model, options)
    bank = FeatureSet.load(run, lm)
    Chat(lm, bank, None if feature is None else bank.check_index(feature), strength, max_new_tokens).loop()


@cli.command()
@click.argument("model", default="smollm2")
@click.option("--prompt", default=built_in.FIT[0], help="The prompt.")
@click.option("--source", type=int, help="Layer to perturb; by default at 8/30 of the depth.")
@click.option("--target", type=int, help="Layer to read; by default at 20/30 of the depth.")
@click.option("-m", "--num-factors", default=128, help="Directions in a sweep.")
@click.option("--threads", type=click.IntRange(min=1), multiple=True, help="CPU threads; may be given again.")
@click.option("--repeats", type=click.IntRange(min=1), default=5, help="How often each thing is measured.")
@click.option("--only", type=click.Choice(list(PARTS)), multiple=True, help="Measure this only; may be given again.")
@click.option("--reference/--no-reference", default=True, help="Measure the plain formulation too (most of the time).")
@_speed
@click.option("--out", type=_file, help="JSON file to write.")
@_loading
@_json
def bench(model: str, prompt: str, threads: Sequence[int], out: Path | None, as_json: bool, **options: Any) -> None:
    """Measure how fast fit, calibration, derivatives and generation are on this machine, against its own matrix products."""
    how = _take(options, "num_factors", "repeats", "only", "reference")
    lm = _load(model, _take(options, *_LOADING))
    cmap = _causal_map(lm, [prompt], options)
    found = {}
    for count in threads or (torch.get_num_threads(),):
        torch.set_num_threads(count)
        rows = []
        for row in measure(cmap, **how):
            rows.append(row)
            if not as_json:
                _show_row(row, count)
        found[count] = [row.describe() for row in rows]
    result = {"environment": environment(), "model": lm.name, "map": cmap.describe(), **how, "threads": found}
    if out is not None:
        write_whole({out: to_json(result)})
    if as_json:
        click.echo(json.dumps(result))


@cli.command()
@click.argument("run", type=click.Path(path_type=Path))
def report(run: Path) -> None:
    """Write RUN/report.html: settings, curves, features with what they make the model say."""
    click.echo(write_report(run))


def _fit_run(cmap: CausalMap, method: str, settings: _Options, seed: int, out: Path, force: bool) -> Fit:
    """Calibrate if no scale is given, fit, save, report."""
    kind = METHODS[method]
    calibration = None
    if "scale" not in settings:
        kind(**settings, scale=1.0).check(cmap)  # before the time is spent
        calibration = find_scale(cmap, seed=seed)
        _say(f"     R = {calibration.scale:.4g}" + (f" ({calibration.relative:.2f} of the stream's median norm)" if calibration.relative else ""))
        settings["scale"] = calibration.scale
    fitted = learn(cmap, kind(**settings), seed=seed)
    bank = fitted.features if calibration is None else fitted.features.with_meta(calibration=calibration.describe())
    bank.save(out, force=force)
    if fitted.warning:
        _say(f"warning: {fitted.warning}")
    write_report(out)
    return fitted


def _settings_for(method: str, given: _Options) -> _Options:
    """The settings that were given, if the method has them."""
    settings = {k: v for k, v in given.items() if v is not None}
    unknown = settings.keys() - {f.name for f in dataclasses.fields(METHODS[method]) if f.init}
    if unknown:
        raise MelboError(f"the method {method} has no setting {', '.join(sorted(unknown))}: leave it out")
    return settings


def _rank_run(lm: LanguageModel, run: Path, validation: Sequence[str], held_out: Sequence[str], **options: Any) -> Ranking:
    """Rank, save, report."""
    bank = FeatureSet.load(run, lm)
    ranking = order(lm, bank, _prompts_like(bank, lm, validation), _prompts_like(bank, lm, held_out), **options)
    ranking.save(run)
    write_report(run)
    return ranking


def _show_row(row: Row, threads: int) -> None:
    """A line for one thing that was measured."""
    share = f"{row.of_products:5.0%} of its products' rate" if row.of_products else ""
    versus = "   ".join(f"{name} × {ratio:.3g}" for name, ratio in (row.versus or {}).items())
    click.echo(f"{threads} threads  {row.what:45} {row.median:8.3f} s  {share:28} {versus}")


def _show(ranking: Ranking, top: int) -> None:
    """The first features, the best of the control and the unsteered reply, as a table."""
    prompt = ranking.settings["held_out"]["texts"][0]
    said = {(c.kind, c.feature): " ".join(c.text.split()) or "(empty reply)" for c in ranking.completions if c.prompt_text == prompt}
    # wide enough to be read where there is no terminal to measure
    console = Console() if sys.stdout.isatty() else Console(width=150)
    table = Table(title=f"Held-out prompt: {prompt}", title_justify="left", title_style="bold", show_edge=False)
    # strength and effect belong to the fit's own prompts: there is nothing held out about them
    splits = {ranking.by: "validation"} if ranking.by in ("alpha", "effect") else {f"{ranking.by}, validation": "validation", "held out": "held_out"}
    for heading in ("", "flag"):
        table.add_column(heading)
    for heading in splits:
        table.add_column(heading, justify="right")
    table.add_column("reply")
    table.add_row("unsteered", "", *["" for _ in splits], Text(said["unsteered", None]), end_section=True)
    for rows, count in ((ranking.features, top), (ranking.controls, 3)):
        for i, r in enumerate(rows[:count]):
            scores = [f"{r.score(ranking.by, split):.3g}" for split in splits.values()]
            name = f"feature {r.index}" if r.kind == "feature" else f"random {r.index}"
            table.add_row(name, r.flag, *scores, Text(said[r.kind, r.index]), end_section=i == min(count, len(rows)) - 1)
    console.print(table)
    facts = ranking.summary
    for kind in ("features", "controls"):
        counts, means = facts[kind], facts["means"][kind]
        flags = ", ".join(f"{n} {name}" for name, n in counts.items())
        click.echo(f"{sum(counts.values())} {kind}: {flags}; mean " + ", ".join(f"{name} {value:.3g}" for name, value in means.items()))
    if facts["best_control"] is not None:
        where = "the fit's own" if ranking.by == "effect" else "held-out"
        best, above, chance = (facts[name] for name in ("best_control", "above_best_control", "expected_by_chance"))
        click.echo(f"{above} active features beat the best active random vector ({best:.3g}) on {where} prompts; by chance {chance:.1f} would")


def _stop_if_interrupted(fitted: Fit, out: Path) -> None:
    if fitted.status.name == "INTERRUPTED":
        _say(f"interrupted after sweep {len(fitted.history)}; what had been found by then is in {out}")
        sys.exit(130)


def _read_prompts(options: _Options) -> list[str]:
    """Prompts given one by one and in a file; takes them out of the options."""
    lines = list(options.pop("prompt"))
    file = options.pop("prompt_file")
    if file is not None:
        lines += _read_file(file)
    if not lines:
        raise MelboError("got no prompts: give --prompt TEXT (it may be repeated) or --prompts FILE with one prompt a line")
    return lines


def _read_file(file: Path) -> list[str]:
    try:
        lines = [line for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as err:
        raise MelboError(
            f"cannot read {file} ({getattr(err, 'strerror', None) or 'not UTF-8'}): expected a text file with one prompt a line"
        ) from err
    if not lines:
        raise MelboError(f"{file} holds no prompts: expected one a line")
    return lines


def _load(name: str, options: _Options) -> LanguageModel:
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    if options.pop("tf32", False):
        torch.set_float32_matmul_precision("high")
    return load(name, **options)


def _load_for(run: Path, name: str | None, options: _Options) -> LanguageModel:
    """The model a run was fitted on; takes the loading options out of ``options``."""
    fitted = read_run(run).get("map", {}).get("model")
    if fitted is None:
        raise MelboError(f"the run in {run} was not fitted on a language model: there is nothing to load")
    return _load(name or fitted["name"], _take(options, *_LOADING))


def _causal_map(lm: LanguageModel, texts: Sequence[str], options: _Options) -> CausalMap:
    settings = dict(options)
    prompts = _as_prompts(lm, texts, settings.pop("system", None), settings.pop("text", False))
    depth = {"source": round(lm.depth * 8 / 30), "target": round(lm.depth * 20 / 30)}
    for side, usual in depth.items():
        if settings.get(side) is None:
            settings[side] = usual
    return CausalMap(lm, prompts, **settings)


def _as_prompts(lm: LanguageModel, texts: Sequence[str], system: str | None, text: bool) -> Prompts:
    if text and system is not None:
        raise MelboError("--system needs a chat template, --text reads prompts without one: leave one of them out")
    return Prompts.text(lm, texts) if text else Prompts.chat(lm, texts, system)


def _prompts_like(bank: FeatureSet, lm: LanguageModel, texts: Sequence[str]) -> Prompts:
    """Prompts of the kind, and with the system message, that the run was fitted on."""
    fitted = bank.meta["map"]["prompts"]
    return _as_prompts(lm, texts, fitted["system"], fitted["kind"] == "text")


def _take(options: _Options, *names: str) -> _Options:
    """Take ``names`` out of ``options``."""
    return {name: options.pop(name) for name in names}


def _say(text: str) -> None:
    click.echo(text, err=True)


def _fail(message: str) -> None:
    _say("error: " + " ".join(message.split()))
    sys.exit(2)
