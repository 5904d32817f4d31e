"""The command that compares recipes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from melbo.cli.options import (
    LOADING,
    READING,
    as_json_option,
    as_prompts,
    causal_map,
    contrast_option,
    file,
    folder,
    load,
    map_options,
    prompt_words,
    read_prompts,
    reply_length_option,
    take,
)
from melbo.cli.show import show_comparison
from melbo.cli.terminal import Command, next_step, print_json, tell
from melbo.discovery.recipes import RECIPES
from melbo.evaluation.compare import USUAL
from melbo.evaluation.compare import compare as compare_recipes
from melbo.evaluation.comparison import Comparison
from melbo.models.text import built_in
from melbo.models.text.prompts import read_texts


@click.command(cls=Command)
@map_options
@click.option(
    "--recipe",
    "recipes",
    type=click.Choice(list(RECIPES)),
    multiple=True,
    default=USUAL,
    show_default=False,
    help="Recipe to compare; may be given again. By default all for directions "
    "but soft, projected, quadratic and columns; cpe and adapters are rank-one edits.",
)
@click.option("-m", "--num-factors", default=32, help="Number of features of each recipe.")
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
    help="Norm to push by, as a multiple of R; may be given again.",
)
@click.option(
    "--seeds",
    type=click.IntRange(min=1),
    default=3,
    help="Number of seeds of each recipe that draws at random.",
)
@click.option(
    "--steps",
    type=click.IntRange(min=1),
    default=12,
    help="melbo: number of gradient steps; 12 long ones lead as far as 300 published ones.",
)
@click.option(
    "--held-out",
    type=file,
    help="File with prompts to reply to, one a line; a built-in one by default.",
)
@contrast_option
@reply_length_option(12)
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
    """Compare recipes for features of MODEL, with controls.

    All recipes see the same prompts, layers and norms, with both signs: is gradient training
    needed?
    """
    Comparison.refuse_existing(out, force)
    asked, trust = prompt_words(options), options["trust_remote_code"]
    texts = read_prompts(options)
    replies = read_texts(held_out) if held_out else built_in.HELD_OUT[:1]
    how = take(options, "num_factors", "times", "seeds", "steps", "contrast", "max_new_tokens")
    lm = load(model, take(options, *LOADING))
    prompts = as_prompts(lm, replies, {name: options[name] for name in READING})
    cmap = causal_map(lm, texts, options)
    found = compare_recipes(cmap, prompts, scale, recipes=recipes, **how)
    found.save(out)
    if as_json:
        print_json(found.describe())
        return
    show_comparison(found)
    tell(f"\nall measures, at all norms: {out / 'compare.md'}, {out / 'compare.png'}")
    next_step("fit", model, *asked, "--out", "runs/new", trust=trust)
