"""Options that commands share, and the prompts, models and maps that they describe."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import torch
from transformers.utils import logging

from melbo.errors import MelboError
from melbo.features.provenance import Provenance
from melbo.features.run_folder import read_run
from melbo.maps.adapter import AdapterMap
from melbo.maps.residual import CausalMap
from melbo.models.language_model import LanguageModel
from melbo.models.load import load as load_from
from melbo.models.low_rank import Matrix
from melbo.models.prompts import Prompts, read_texts

LOADING = ("dtype", "device", "tf32", "device_map", "trust_remote_code", "blocks")
Options = dict[str, Any]
Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def group_options(*options: Decorator) -> Decorator:
    """Several options as one decorator, listed in this order."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def reply_length_option(default: int) -> Decorator:
    """The option ``--max-new-tokens``."""
    return click.option(
        "--max-new-tokens",
        type=click.IntRange(min=1),
        default=default,
        help="Number of tokens of a reply at most.",
    )


folder = click.Path(file_okay=False, path_type=Path)
file = click.Path(dir_okay=False, path_type=Path)
as_json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print JSON on standard output and nothing else there."
)
seed_option = click.option(
    "--seed", type=click.IntRange(0, 2**63 - 1), default=0, help="Random seed."
)
strength_option = click.option(
    "--strength", default=1.0, help="Multiple of the scale; a negative one pushes the other way."
)
contrast_option = click.option(
    "--contrast",
    nargs=2,
    metavar="A B",
    help="Two strings: scores logit(A) − logit(B) at the first token of the reply.",
)
loading_options = group_options(
    click.option(
        "--dtype",
        default="auto",
        help="Number format: auto (the checkpoint's own), float32, bfloat16, float16.",
    ),
    click.option("--device", help="Device of the model; by default a GPU if there is one."),
    click.option(
        "--tf32",
        is_flag=True,
        help="Multiply float32 matrices with three digits on a GPU, several times faster.",
    ),
    click.option(
        "--device-map",
        help="Device map of transformers; 'auto' spreads a large model over devices.",
    ),
    click.option(
        "--trust-remote-code", is_flag=True, help="Run Python code that the checkpoint holds."
    ),
    click.option(
        "--blocks",
        help="Dotted path of the decoder blocks, where they are not found by themselves.",
    ),
)
run_argument = group_options(
    click.argument("run", type=click.Path(path_type=Path)),
    click.option("--model", help="Path or hub id of the run's model, if it has moved."),
    loading_options,
)
new_run_options = group_options(
    click.option("--out", type=folder, required=True, help="Folder for the run."),
    click.option("--force", is_flag=True, help="Replace a run that is there already."),
)
prompt_options = group_options(
    click.option("--prompt", "prompt", multiple=True, help="A prompt; may be given again."),
    click.option("--prompts", "prompt_file", type=file, help="File with one prompt a line."),
)
reading_options = group_options(
    click.option("--system", help="System message; by default the chat template's own."),
    click.option(
        "--text", is_flag=True, help="Read the prompts as they are, without a chat template."
    ),
)
choice_options = group_options(
    click.option(
        "--feature",
        "indices",
        type=int,
        multiple=True,
        help="Index of a feature; may be given again.",
    ),
    click.option(
        "--average",
        type=click.Choice(["mean", "svd"]),
        help="Average the features into one: their mean, or their leading singular vector.",
    ),
)
speed_options = group_options(
    click.option(
        "--tokens-per-pass",
        type=click.IntRange(min=1),
        help="Number of tokens that run at a time; by default what half of the free memory holds.",
    ),
    click.option(
        "--compile/--no-compile",
        default=None,
        help="Compile the blocks; by default on a CPU once that pays.",
    ),
)
map_options = group_options(
    click.argument("model"),
    prompt_options,
    reading_options,
    click.option("--source", type=int, help="Layer to perturb; by default at 8/30 of the depth."),
    click.option("--target", type=int, help="Layer to read; by default at 20/30 of the depth."),
    click.option("--target-tokens", default=3, help="Number of last tokens that are read."),
    click.option(
        "--skip-first", is_flag=True, help="Leave the first token, the attention sink, unsteered."
    ),
    click.option(
        "--read",
        type=click.Choice(["stream", "attention"]),
        default="stream",
        help="Read the stream, or what attention in the last block adds to it.",
    ),
    click.option(
        "--normalise-target",
        is_flag=True,
        help="Read h/‖h‖, which guards against features that blow up norms.",
    ),
    click.option(
        "--concatenate", is_flag=True, help="Stack prompts and tokens instead of averaging them."
    ),
    click.option(
        "--positions",
        default="all",
        type=click.Choice(["all", "target"]),
        help="Steer every token, or (faster) only the tokens that are read.",
    ),
    speed_options,
    loading_options,
)


def take(options: Options, *names: str) -> Options:
    """Take some options out of all of them."""
    return {name: options.pop(name) for name in names}


def read_prompts(options: Options, at_least: int = 1) -> list[str]:
    """Read the prompts that were given one by one and in a file; take them out of the options.

    Args:
        options: Options of the command.
        at_least: The fewest prompts that will do.

    Raises:
        MelboError: There are fewer; and as `read_texts`.
    """
    lines = list(options.pop("prompt"))
    path = options.pop("prompt_file")
    if path is not None:
        lines += read_texts(path)
    if len(lines) < at_least:
        raise MelboError(
            "got no prompts: "
            "give --prompt TEXT (it may be repeated) or --prompts FILE with one prompt a line"
        )
    return lines


def as_prompts(lm: LanguageModel, texts: Sequence[str], system: str | None, text: bool) -> Prompts:
    """Texts as prompts of a model.

    Args:
        lm: The model.
        texts: The texts.
        system: System message of a chat.
        text: Whether prompts are read as they are, without a chat template.

    Raises:
        MelboError: A system message without a chat template; and as `Prompts`.
    """
    if text and system is not None:
        raise MelboError(
            "--system needs a chat template, --text reads prompts without one: "
            "leave one of them out"
        )
    return Prompts.text(lm, texts) if text else Prompts.chat(lm, texts, system)


def load(name: str, options: Options) -> LanguageModel:
    """Load a model, with nothing printed on the way.

    Args:
        name: See `melbo.load`.
        options: Options of `LOADING`, any of them left out.
    """
    messages: Any = logging  # transformers gives its functions no types
    messages.disable_progress_bar()
    messages.set_verbosity_error()
    if options.pop("tf32", False):
        torch.set_float32_matmul_precision("high")
    return load_from(name, **options)


def load_for(run: Path, name: str | None, options: Options) -> LanguageModel:
    """Load the model that a run was fitted on; take the options of `LOADING` out.

    Args:
        run: The run folder.
        name: Where the model is now; as the run has it, if left out.
        options: Options of the command.

    Raises:
        MelboError: The run was not fitted on a language model; and as `melbo.load`.
    """
    fitted = Provenance.of(read_run(run)).model_name
    if fitted is None:
        raise MelboError(
            f"the run in {run} was not fitted on a language model: there is nothing to load"
        )
    return load(name or fitted, take(options, *LOADING))


def causal_map(lm: LanguageModel, texts: Sequence[str], options: Options) -> CausalMap:
    """Map of directions, at the usual layers where the options give none.

    Args:
        lm: The model.
        texts: Prompts of the map.
        options: Options of the map, any of them left out.
    """
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
    """Map of adapters.

    Args:
        lm: The model.
        texts: Prompts of the map.
        options: Options of the map.
        band: See `AdapterMap`.
        matrix: See `AdapterMap`; attention's if left out.

    Raises:
        MelboError: An option says how a direction is added, which adapters are not.
    """
    settings = dict(options)
    prompts = as_prompts(lm, texts, settings.pop("system", None), settings.pop("text", False))
    usual = {"source": None, "skip_first": False, "positions": "all", "read": "stream"}
    for name, value in usual.items():
        if settings.pop(name) != value:
            raise MelboError(
                f"--{name.replace('_', '-')} is not for adapters: "
                "leave it out; --band says which blocks they edit"
            )
    return AdapterMap(lm, prompts, band, matrix=matrix or "attention", **settings)


def default_layers(
    lm: LanguageModel, shares: tuple[float, float] = (8 / 30, 20 / 30)
) -> tuple[int, int]:
    """Source and target layer where none are given.

    Args:
        lm: The model.
        shares: Their shares of the depth.
    """
    return round(lm.depth * shares[0]), round(lm.depth * shares[1])
