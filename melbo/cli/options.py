"""What commands have in common: options, and how prompts, models and maps are read from them."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import torch
from transformers.utils import logging

from melbo.errors import MelboError
from melbo.features.run_folder import read_run
from melbo.maps.adapter import AdapterMap
from melbo.maps.residual import CausalMap
from melbo.models.language_model import LanguageModel
from melbo.models.load import load as load_from
from melbo.models.low_rank import Matrix
from melbo.models.prompts import Prompts, read_texts

LOADING = ("dtype", "device", "tf32", "device_map", "trust_remote_code", "blocks")
METHOD = ("num_factors", "scale", "max_steps", "tol", "steps", "together", "orthogonalise", "start")
Options = dict[str, Any]


def together(*options: Callable) -> Callable:
    """Several options as one decorator."""

    def decorate(command: Callable) -> Callable:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


folder = click.Path(file_okay=False, path_type=Path)
file = click.Path(dir_okay=False, path_type=Path)
as_json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print JSON on standard output, and nothing else there."
)
seed_option = click.option(
    "--seed", type=click.IntRange(0, 2**63 - 1), default=0, help="Of everything random."
)
loading_options = together(
    click.option(
        "--dtype",
        default="auto",
        help="What to compute in: auto (the checkpoint's own), float32, bfloat16, float16.",
    ),
    click.option("--device", help="Where to put the model; by default a GPU if there is one."),
    click.option(
        "--tf32",
        is_flag=True,
        help="Let a GPU multiply float32 matrices at TF32 precision: three digits, several times faster.",
    ),
    click.option(
        "--device-map", help="Passed to transformers; 'auto' spreads a large model over devices."
    ),
    click.option(
        "--trust-remote-code", is_flag=True, help="Run code that the checkpoint brings along."
    ),
    click.option(
        "--blocks", help="Dotted path of the decoder blocks, where it is not found by itself."
    ),
)
run_argument = together(
    click.argument("run", type=click.Path(path_type=Path)),
    click.option("--model", help="Where the run's model is now, if it has moved."),
    loading_options,
)
prompt_options = together(
    click.option("--prompt", "prompt", multiple=True, help="A prompt; may be given again."),
    click.option("--prompts", "prompt_file", type=file, help="A file with one prompt a line."),
)
choice_options = together(
    click.option(
        "--feature", "indices", type=int, multiple=True, help="Which feature; may be given again."
    ),
    click.option(
        "--merge",
        type=click.Choice(["mean", "svd"]),
        help="Make one of them: their mean, or their leading singular vector.",
    ),
)
speed_options = together(
    click.option(
        "--tokens-per-pass",
        type=click.IntRange(min=1),
        help="Tokens run at a time; by default what half the free memory holds.",
    ),
    click.option(
        "--compile/--no-compile",
        default=None,
        help="Compile the blocks; by default on a CPU once that pays.",
    ),
)
map_options = together(
    click.argument("model"),
    prompt_options,
    click.option("--system", help="System message; by default the chat template's own."),
    click.option(
        "--text", is_flag=True, help="Read the prompts as they are, without a chat template."
    ),
    click.option("--source", type=int, help="Layer to perturb; by default at 8/30 of the depth."),
    click.option("--target", type=int, help="Layer to read; by default at 20/30 of the depth."),
    click.option("--target-tokens", default=3, help="How many of the last tokens are read."),
    click.option(
        "--skip-first", is_flag=True, help="Leave the first token, the attention sink, unsteered."
    ),
    click.option(
        "--read",
        type=click.Choice(["stream", "attention"]),
        default="stream",
        help="The stream, or what attention in the last block adds to it.",
    ),
    click.option(
        "--normalise-target",
        is_flag=True,
        help="Read h/‖h‖: guards against features that blow up norms.",
    ),
    click.option(
        "--concatenate", is_flag=True, help="Stack prompts and tokens instead of averaging them."
    ),
    click.option(
        "--positions",
        default="all",
        type=click.Choice(["all", "target"]),
        help="Steer every token, or (fast) only those that are read.",
    ),
    speed_options,
    loading_options,
)


def read_prompts(options: Options, at_least: int = 1) -> list[str]:
    """Prompts given one by one and in a file; takes them out of the options."""
    lines = list(options.pop("prompt"))
    file = options.pop("prompt_file")
    if file is not None:
        lines += read_texts(file)
    if len(lines) < at_least:
        raise MelboError(
            "got no prompts: give --prompt TEXT (it may be repeated) or --prompts FILE with one prompt a line"
        )
    return lines


def load(name: str, options: Options) -> LanguageModel:
    """The model, with nothing printed on the way."""
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    if options.pop("tf32", False):
        torch.set_float32_matmul_precision("high")
    return load_from(name, **options)


def load_for(run: Path, name: str | None, options: Options) -> LanguageModel:
    """The model a run was fitted on; takes the loading options out of ``options``."""
    fitted = read_run(run).get("map", {}).get("model")
    if fitted is None:
        raise MelboError(
            f"the run in {run} was not fitted on a language model: there is nothing to load"
        )
    return load(name or fitted["name"], take(options, *LOADING))


def causal_map(lm: LanguageModel, texts: Sequence[str], options: Options) -> CausalMap:
    """The map that the options describe, at the usual layers where none are given."""
    settings = dict(options)
    prompts = as_prompts(lm, texts, settings.pop("system", None), settings.pop("text", False))
    for side, usual in zip(("source", "target"), default_layers(lm), strict=True):
        if settings.get(side) is None:
            settings[side] = usual
    return CausalMap(lm, prompts, **settings)


def adapter_map(
    lm: LanguageModel,
    texts: Sequence[str],
    options: Options,
    band: tuple[int, int] | None,
    matrix: Matrix | None,
) -> AdapterMap:
    """The map of adapters that the options describe.

    Raises:
        MelboError: Options that say how a vector is added.
    """
    settings = dict(options)
    prompts = as_prompts(lm, texts, settings.pop("system", None), settings.pop("text", False))
    usual = {"source": None, "skip_first": False, "positions": "all", "read": "stream"}
    for name, value in usual.items():
        if settings.pop(name) != value:
            raise MelboError(
                f"--{name.replace('_', '-')} is not for adapters: leave it out; --band says which blocks they edit"
            )
    return AdapterMap(lm, prompts, band, matrix=matrix or "attention", **settings)


def default_layers(
    lm: LanguageModel, shares: tuple[float, float] = (8 / 30, 20 / 30)
) -> tuple[int, int]:
    """Source and target where none are given, by their shares of the depth."""
    return round(lm.depth * shares[0]), round(lm.depth * shares[1])


def as_prompts(lm: LanguageModel, texts: Sequence[str], system: str | None, text: bool) -> Prompts:
    """Texts as prompts of a chat, or as they are."""
    if text and system is not None:
        raise MelboError(
            "--system needs a chat template, --text reads prompts without one: leave one of them out"
        )
    return Prompts.text(lm, texts) if text else Prompts.chat(lm, texts, system)


def take(options: Options, *names: str) -> Options:
    """Take ``names`` out of ``options``."""
    return {name: options.pop(name) for name in names}
