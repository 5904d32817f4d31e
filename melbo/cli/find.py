"""Commands that find features."""

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from melbo.cli.options import (
    LOADING,
    METHOD,
    Options,
    adapter_map,
    as_json_option,
    as_prompts,
    causal_map,
    default_layers,
    file,
    folder,
    load,
    loading_options,
    map_options,
    read_prompts,
    seed_option,
    take,
)
from melbo.cli.pipeline import fit_run, rank_run
from melbo.cli.show import say, show_comparison, show_ranking
from melbo.discovery.contrastive import caa
from melbo.discovery.fit import Fit
from melbo.discovery.recipes import RECIPES
from melbo.errors import MelboError
from melbo.evaluation.compare import USUAL, Comparison
from melbo.evaluation.compare import compare as compare_ways
from melbo.evaluation.report import report
from melbo.features.prompt_pair import PromptPair
from melbo.features.run_folder import refuse_existing
from melbo.maps.calibrate import Calibration
from melbo.maps.calibrate import calibrate as find_scale
from melbo.maps.residual import CausalMap
from melbo.methods import CPE, METHODS
from melbo.models import prompts as built_in
from melbo.models.low_rank import Matrix
from melbo.models.prompts import read_pairs, read_texts


@click.command()
@click.option("--out", type=folder, default=Path("runs/demo"), help="Folder for the run.")
@click.option("--force", is_flag=True, help="Replace a run that is there already.")
def demo(out: Path, force: bool) -> None:
    """Find latent behaviours of the bundled model, from one prompt, in a few minutes."""
    refuse_existing(out, force)
    say(f"1/4  loading SmolLM2-135M-Instruct; one prompt: {built_in.FIT[0]!r}")
    lm = load("smollm2", {})
    cmap = causal_map(lm, built_in.FIT, {"source": 8, "target": 20})
    say(
        "2/4  calibrating the scale, then learning 64 directions at layer 8 that change layer 20 most"
    )
    fitted, scale = fit_run(cmap, METHODS["exponential"], {"num_factors": 64}, out, force=force)
    _say_of(fitted, scale, out)
    say("3/4  generating with every direction, and with 32 random ones as the control")
    ranking = rank_run(lm, out, built_in.VALIDATION, built_in.HELD_OUT, max_new_tokens=24)
    say("4/4  what they make the model say")
    show_ranking(ranking, 12)
    click.echo(f"\nTalk to a feature:   melbo chat {out} --feature {ranking.features[0].index}")
    click.echo(f"Read everything:     {(out / 'report.html').resolve()}")


@click.command()
@map_options
@click.option(
    "--method", default="exponential", type=click.Choice(list(METHODS)), help="How to learn."
)
@click.option("-m", "--num-factors", default=64, help="How many directions.")
@click.option("--scale", type=float, help="R, the norm of a perturbation; by default calibrated.")
@click.option(
    "--max-steps", type=int, help="Sweeps at most (iterative methods; 10 by default, 30 of cpe)."
)
@click.option("--tol", type=float, help="When to stop.")
@click.option(
    "--steps", type=int, help="Gradient steps of each vector (melbo; its default is 300)."
)
@click.option(
    "--together",
    type=int,
    help="Vectors trained in one batch (melbo; 16 by default, 1 is one after the other).",
)
@click.option(
    "--orthogonalise",
    type=click.Choice(["qr", "polar", "soft"]),
    help="How directions are pushed apart.",
)
@click.option(
    "--start",
    type=click.Choice(["projected", "backward"]),
    help="Where the exponential method starts.",
)
@click.option(
    "--band",
    type=int,
    nargs=2,
    help="cpe: blocks FIRST … LAST − 1 are edited; by default five around a third of the depth.",
)
@click.option(
    "--matrix",
    type=click.Choice(["attention", "mlp"]),
    help="cpe: which output matrix is edited; attention's by default.",
)
@click.option("--out", type=folder, required=True, help="Folder for the run.")
@click.option("--force", is_flag=True, help="Replace a run that is there already.")
@click.option(
    "--seeds",
    type=click.IntRange(min=1),
    default=1,
    help="How many fits; more than one says how well each feature is found again.",
)
@seed_option
@as_json_option
def fit(
    model: str, method: str, band: tuple[int, int] | None, matrix: Matrix | None, out: Path, force: bool, seed: int, seeds: int, as_json: bool,
    **options: Any,
) -> None:  # fmt: skip
    """Learn features of MODEL (smollm2, a hub id, a folder or a .gguf file) from a few prompts."""
    settings = _settings_for(method, take(options, *METHOD))
    refuse_existing(out, force)
    texts = read_prompts(options)
    lm = load(model, take(options, *LOADING))
    if issubclass(METHODS[method], CPE):
        cmap: CausalMap = adapter_map(lm, texts, options, band, matrix)
    elif band is not None or matrix is not None:
        raise MelboError(
            f"--band and --matrix belong to the method cpe, not {method}: leave them out"
        )
    else:
        cmap = causal_map(lm, texts, options)
    fitted, scale = fit_run(
        cmap, METHODS[method], settings, out, seed=seed, seeds=seeds, force=force
    )
    if as_json:
        summary = {
            "run": str(out),
            "scale": fitted.features.scale,
            "status": fitted.status.name.lower(),
            "stats": fitted.stats,
            "history": fitted.history,
            "stability": fitted.features.meta.get("stability"),
        }
        click.echo(json.dumps(summary))
    else:
        click.echo(
            f"{len(fitted.features)} features at R = {fitted.features.scale:.4g} explain {fitted.stats['explained']:.4g}; {fitted.status.remedy}"
        )
        if found := fitted.features.meta.get("stability"):
            click.echo(
                f"found again with {found['seeds']} seeds: mean best cosine {found['mean']:.2f}, random {found['baseline']:.2f}"
            )
        click.echo(f"saved to {out}; next: melbo rank {out}")
    _say_of(fitted, scale, out)


@click.command()
@map_options
@click.option(
    "--nonlinearity",
    default=0.5,
    help="λ: how large the non-linear remainder is to be, relative to the linear part.",
)
@seed_option
@as_json_option
def calibrate(model: str, nonlinearity: float, seed: int, as_json: bool, **options: Any) -> None:
    """Find the scale R at which MODEL's response becomes half non-linear."""
    texts = read_prompts(options)
    lm = load(model, take(options, *LOADING))
    found = find_scale(causal_map(lm, texts, options), nonlinearity, seed=seed)
    if as_json:
        click.echo(json.dumps(found.describe()))
        return
    for scale, ratio in sorted(found.curve + found.solved[-1:]):
        click.echo(
            f"R = {scale:9.4g}   non-linear / linear = {ratio:.3f}  {'█' * min(60, round(40 * ratio))}"
        )
    click.echo(
        f"R = {found.scale:.4g}"
        + (f", {found.relative:.2f} of the stream's median norm" if found.relative else "")
    )
    if found.warning:
        say(f"warning: {found.warning}")


@click.command()
@click.argument("model")
@click.option(
    "--method",
    type=click.Choice(["caa", "actadd", "sara"]),
    required=True,
    help="Contrastive activation addition, activation addition, scaling.",
)
@click.option(
    "--pairs",
    type=file,
    help="caa: a file with a pair a line, with the behaviour and without it, a tab between.",
)
@click.option("--plus", help="actadd, sara: the prompt to move towards.")
@click.option("--minus", help="actadd, sara: the prompt to move away from.")
@click.option(
    "--layer",
    "layers",
    type=int,
    multiple=True,
    help="Layer to change; by default at 8/30 of the depth. May be given again (not for caa).",
)
@click.option(
    "--target",
    type=int,
    help="caa: layer at which the effect is measured; by default at 20/30 of the depth.",
)
@click.option("--coefficient", default=1.0, help="Of the difference, or of the scaling.")
@click.option(
    "--truncation", type=click.IntRange(min=1), help="sara: singular directions to keep at most."
)
@click.option("--system", help="System message; by default the chat template's own.")
@click.option("--text", is_flag=True, help="Read the prompts as they are, without a chat template.")
@click.option(
    "--out", type=folder, required=True, help="Folder for the run; sample and chat take it."
)
@click.option("--force", is_flag=True, help="Replace a run that is there already.")
@loading_options
def contrast(
    model: str, method: str, pairs: Path | None, plus: str | None, minus: str | None, layers: Sequence[int], target: int | None, out: Path,
    force: bool, **options: Any,
) -> None:  # fmt: skip
    """Make what steers MODEL from prompts that differ in a behaviour: the supervised baselines."""
    if (pairs is None) == (method == "caa") or any(
        (side is None) != (method == "caa") for side in (plus, minus)
    ):
        raise MelboError(
            "caa takes --pairs FILE, actadd and sara take --plus TEXT --minus TEXT, and each takes nothing of the other"
        )
    refuse_existing(out, force)
    texts = read_pairs(pairs) if pairs is not None else ([str(plus)], [str(minus)])
    lm = load(model, take(options, *LOADING))
    how = take(options, "system", "text")
    towards, away = (as_prompts(lm, side, **how) for side in texts)
    source, usual_target = default_layers(lm)
    if method == "caa":
        if len(layers) > 1 or options["truncation"] is not None:
            raise MelboError(
                "caa adds one vector at one layer: give --layer once, and no --truncation"
            )
        cmap = causal_map(
            lm,
            texts[1],
            {
                **how,
                "source": layers[0] if layers else source,
                "target": usual_target if target is None else target,
            },
        )
        features = caa(cmap, towards, away, options["coefficient"])
        features.save(out, force=force)
        report(out)
        norm = f"norm {features.scale:.4g}, {features.scale / (cmap.source_norm or 1):.2f} of the stream's median norm at layer {cmap.source}"
    else:
        if target is not None or (method == "actadd" and options["truncation"] is not None):
            raise MelboError("--target belongs to caa, --truncation to sara: leave it out")
        pair = PromptPair.of(lm, method, towards, away, layers or (source,), **options)
        pair.save(out, force=force)
        norm = "; ".join(pair.sizes())
    click.echo(f"{method}: {norm}")
    click.echo(f"saved to {out}; next: melbo sample {out} --prompt ...")


@click.command()
@map_options
@click.option(
    "--way",
    "ways",
    type=click.Choice(list(RECIPES)),
    multiple=True,
    default=USUAL,
    show_default=False,
    help="May be given again; by default all directions but soft, projected, quadratic and columns. cpe and adapters are rank-one edits.",
)
@click.option("-m", "--num-factors", default=32, help="How many features of each.")
@click.option(
    "--scale",
    type=float,
    help="R of directions; by default calibrated, as that of adapters always is.",
)
@click.option(
    "--times",
    type=float,
    multiple=True,
    default=(0.5, 1.0, 1.5, 2.0),
    help="Norms to push by, in multiples of R; may be given again.",
)
@click.option(
    "--seeds",
    type=click.IntRange(min=1),
    default=3,
    help="How many times what is random is done anew.",
)
@click.option(
    "--steps",
    type=click.IntRange(min=1),
    default=12,
    help="Of MELBO, large ones: twelve lead as far as 300 published ones.",
)
@click.option(
    "--held-out", type=file, help="Prompts to reply to, one a line; a built-in one by default."
)
@click.option(
    "--contrast",
    nargs=2,
    metavar="A B",
    help="Two strings: logit(A) − logit(B) at the first token of the reply.",
)
@click.option(
    "--max-new-tokens", type=click.IntRange(min=1), default=12, help="Length of a reply at most."
)
@click.option("--out", type=folder, required=True, help="Folder for the table and the picture.")
@click.option("--force", is_flag=True, help="Replace a comparison that is there already.")
@as_json_option
def compare(
    model: str,
    recipes: Sequence[str],
    scale: float | None,
    held_out: Path | None,
    out: Path,
    force: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Ways to find features side by side, with controls: is gradient training needed?"""
    Comparison.refuse_existing(out, force)
    texts = read_prompts(options)
    replies = read_texts(held_out) if held_out else built_in.HELD_OUT[:1]
    how = take(options, "num_factors", "times", "seeds", "steps", "contrast", "max_new_tokens")
    told = {k: options[k] for k in ("system", "text")}
    lm = load(model, take(options, *LOADING))
    cmap = causal_map(lm, texts, options)
    found = compare_ways(cmap, as_prompts(lm, replies, **told), scale, recipes=recipes, **how)
    found.save(out)
    if as_json:
        click.echo(json.dumps(found.describe()))
        return
    show_comparison(found)
    click.echo(f"\nThe rest of it: {out / 'compare.md'}, {out / 'compare.png'}")


def _settings_for(method: str, given: Options) -> Options:
    """The settings that were given, if the method has them."""
    settings = {k: v for k, v in given.items() if v is not None}
    unknown = settings.keys() - {f.name for f in dataclasses.fields(METHODS[method]) if f.init}
    if unknown:
        raise MelboError(
            f"the method {method} has no setting {', '.join(sorted(unknown))}: leave it out"
        )
    return settings


def _say_of(fitted: Fit, scale: Calibration | None, out: Path) -> None:
    """What the user should know of a fit beside its features; ends the command if it was interrupted."""
    if scale is not None:
        say(
            f"     R = {scale.scale:.4g}"
            + (f" ({scale.relative:.2f} of the stream's median norm)" if scale.relative else "")
        )
    if fitted.warning:
        say(f"warning: {fitted.warning}")
    if fitted.status.name == "INTERRUPTED":
        say(
            f"interrupted after sweep {len(fitted.history)}; what had been found by then is in {out}"
        )
        sys.exit(130)
