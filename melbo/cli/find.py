"""Commands that find features: demo, fit and calibrate."""

import dataclasses
import sys
from pathlib import Path
from typing import Any

import click

from melbo.cli.options import (
    LOADING,
    Options,
    adapter_map,
    as_json_option,
    causal_map,
    folder,
    load,
    map_options,
    new_run_options,
    prompt_words,
    read_prompts,
    seed_option,
    take,
)
from melbo.cli.pipeline import fit_run, rank_run
from melbo.cli.ranking_table import show_ranking
from melbo.cli.show import show_calibration, show_fit
from melbo.cli.terminal import Command, next_step, print_json, say
from melbo.discovery.fit import Fit
from melbo.errors import MelboError
from melbo.features.run_folder import refuse_existing
from melbo.maps.calibrate import Calibration
from melbo.maps.calibrate import calibrate as find_scale
from melbo.maps.model_map import ModelMap
from melbo.methods import CPE, METHODS
from melbo.models.language_model import LanguageModel
from melbo.models.text import built_in
from melbo.models.weights.low_rank import Matrix

#: Options of ``melbo fit`` that are settings of methods.
SETTINGS = (
    "num_factors",
    "scale",
    "max_steps",
    "tol",
    "steps",
    "batch_size",
    "orthogonalise",
    "start",
)


@click.command(cls=Command)
@click.option("--out", type=folder, default=Path("runs/demo"), help="Folder for the run.")
@click.option("--force", is_flag=True, help="Replace a run that is there already.")
def demo(out: Path, force: bool) -> None:
    """Find latent behaviours of the bundled model in a few minutes.

    Fits on one prompt, ranks what is found beside random directions, and prints the replies.
    """
    refuse_existing(out, force)
    say(f"1/4  loading SmolLM2-135M-Instruct; one prompt: {built_in.FIT[0]!r}")
    lm = load("smollm2", {})
    cmap = causal_map(lm, built_in.FIT, {"source": 8, "target": 20})
    say(
        "2/4  calibrating the scale, then learning 64 directions at layer 8 "
        "that change layer 20 most"
    )
    fitted, scale = fit_run(cmap, METHODS["exponential"], {"num_factors": 64}, out, force=force)
    _finish_fit(fitted, scale, out)
    say("3/4  generating with every direction, and with 32 random ones as the control")
    ranking = rank_run(lm, out, built_in.VALIDATION, built_in.HELD_OUT, max_new_tokens=24)
    say("4/4  what they make the model say")
    show_ranking(ranking, 12)
    first = ranking.features[0].index
    click.echo(f"\nRead everything: {(out / 'report.html').resolve()}")
    next_step("chat", out, "--feature", first)


@click.command(cls=Command)
@map_options
@click.option(
    "--method",
    default="exponential",
    type=click.Choice(list(METHODS)),
    help="Algorithm that learns the features.",
)
@click.option("-m", "--num-factors", default=64, help="Number of features.")
@click.option("--scale", type=float, help="R, the norm of a perturbation; by default calibrated.")
@click.option(
    "--max-steps",
    type=int,
    help="quadratic, exponential, cpe: number of sweeps at most; 10 by default, 30 for cpe.",
)
@click.option("--tol", type=float, help="Tolerance at which the fit stops.")
@click.option("--steps", type=int, help="melbo: number of gradient steps of a vector; default 300.")
@click.option(
    "--vectors-per-batch",
    "batch_size",
    type=int,
    help="melbo: number of vectors trained at once; 16 by default, 1 is one after the other.",
)
@click.option(
    "--orthogonalise",
    type=click.Choice(["qr", "polar", "soft"]),
    help="quadratic, exponential, cpe: how features are pushed apart.",
)
@click.option(
    "--start",
    type=click.Choice(["projected", "backward"]),
    help="exponential, cpe: start from a projected Jacobian, or gradients of random outputs.",
)
@click.option(
    "--band",
    type=int,
    nargs=2,
    metavar="FIRST LAST",
    help="cpe: edit blocks FIRST … LAST − 1; by default five around a third of the depth.",
)
@click.option(
    "--matrix",
    type=click.Choice(["attention", "mlp"]),
    help="cpe: which output matrix is edited; attention's by default.",
)
@new_run_options
@click.option(
    "--seeds",
    type=click.IntRange(min=1),
    default=1,
    help="Number of fits; more than one tells how well each feature is found again.",
)
@seed_option
@as_json_option
def fit(
    model: str,
    method: str,
    band: tuple[int, int] | None,
    matrix: Matrix | None,
    out: Path,
    force: bool,
    seed: int,
    seeds: int,
    as_json: bool,
    **options: Any,
) -> None:
    """Learn features of MODEL from a few prompts.

    MODEL is smollm2 (the bundled model), a hub id, a folder or a .gguf file.
    """
    settings = _settings_of(method, take(options, *SETTINGS))
    refuse_existing(out, force)
    texts = read_prompts(options)
    trust = options["trust_remote_code"]
    lm = load(model, take(options, *LOADING))
    fitted_map = _map_of(method, lm, texts, options, band, matrix)
    fitted, scale = fit_run(
        fitted_map, METHODS[method], settings, out, seed=seed, seeds=seeds, force=force
    )
    if as_json:
        print_json(_summary(fitted, out))
    else:
        show_fit(fitted, out, trust)
    _finish_fit(fitted, scale, out)


@click.command(cls=Command)
@map_options
@click.option(
    "--nonlinearity",
    default=0.5,
    help="λ, the size of the non-linear part of the response relative to the linear part.",
)
@seed_option
@as_json_option
def calibrate(model: str, nonlinearity: float, seed: int, as_json: bool, **options: Any) -> None:
    """Find the norm at which the response of MODEL is half non-linear.

    MODEL is smollm2 (the bundled model), a hub id, a folder or a .gguf file.
    """
    asked = prompt_words(options)
    texts, trust = read_prompts(options), options["trust_remote_code"]
    lm = load(model, take(options, *LOADING))
    found = find_scale(causal_map(lm, texts, options), nonlinearity, seed=seed)
    if as_json:
        print_json(found.describe())
    else:
        show_calibration(found)
        scale = f"{found.scale:.4g}"
        next_step("fit", model, *asked, "--scale", scale, "--out", "runs/new", trust=trust)


def _settings_of(method: str, given: Options) -> Options:
    """The settings that were given.

    Raises:
        MelboError: The method has no such setting.
    """
    settings = {k: v for k, v in given.items() if v is not None}
    unknown = settings.keys() - {f.name for f in dataclasses.fields(METHODS[method]) if f.init}
    if unknown:
        raise MelboError(
            f"the method {method} has no setting {', '.join(sorted(unknown))}: leave it out"
        )
    return settings


def _map_of(
    method: str,
    lm: LanguageModel,
    texts: list[str],
    options: Options,
    band: tuple[int, int] | None,
    matrix: Matrix | None,
) -> ModelMap:
    """The map that a method is fitted on: of adapters for cpe, of directions for all others.

    Raises:
        MelboError: Options of cpe for another method.
    """
    if issubclass(METHODS[method], CPE):
        return adapter_map(lm, texts, options, band, matrix)
    if band is not None or matrix is not None:
        raise MelboError(
            f"--band and --matrix belong to the method cpe, not {method}: leave them out"
        )
    return causal_map(lm, texts, options)


def _summary(fitted: Fit, out: Path) -> dict[str, Any]:
    """A fit as JSON."""
    return {
        "run": str(out),
        "scale": fitted.features.scale,
        "status": fitted.status.name.lower(),
        "stats": fitted.stats,
        "history": fitted.history,
        "stability": fitted.features.meta.get("stability"),
    }


def _finish_fit(fitted: Fit, scale: Calibration | None, out: Path) -> None:
    """Print scale and warning of a fit; end the command if the fit was interrupted."""
    if scale is not None:
        share = f" ({scale.relative:.2f} of the stream's median norm)" if scale.relative else ""
        say(f"     R = {scale.scale:.4g}{share}")
    if fitted.warning:
        say(f"warning: {fitted.warning}")
    if fitted.status.name == "INTERRUPTED":
        sweeps = len(fitted.history)
        say(f"interrupted after sweep {sweeps}; what had been found by then is in {out}")
        sys.exit(130)
