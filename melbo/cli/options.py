"""Options that commands share, and the prompts, models and maps that they describe."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import torch
from transformers.utils import logging

from melbo.cli.reading import READING as READING
from melbo.cli.reading import Decorator as Decorator
from melbo.cli.reading import Options as Options
from melbo.cli.reading import as_prompts as as_prompts
from melbo.cli.reading import file as file
from melbo.cli.reading import group_options as group_options
from melbo.cli.reading import prompt_options as prompt_options
from melbo.cli.reading import prompt_words as prompt_words
from melbo.cli.reading import read_prompts as read_prompts
from melbo.cli.reading import reading_options as reading_options
from melbo.cli.reading import take as take
from melbo.cli.threads import threads_option
from melbo.errors import MelboError
from melbo.features.provenance import Provenance
from melbo.features.run_folder import read_run
from melbo.maps.adapter import AdapterMap
from melbo.maps.residual import CausalMap
from melbo.models.language_model import LanguageModel
from melbo.models.loading.gguf import ALIAS
from melbo.models.loading.load import load as load_from
from melbo.models.placement import USUAL_SHARES, layers_at
from melbo.models.weights.low_rank import Matrix
from melbo.progress import Waiting

LOADING = ("dtype", "device", "tf32", "device_map", "trust_remote_code", "blocks", "bits")


def reply_length_option(default: int) -> Decorator:
    """The option ``--max-new-tokens``."""
    return click.option(
        "--max-new-tokens",
        type=click.IntRange(min=1),
        default=default,
        help="Number of tokens of a reply at most.",
    )


folder = click.Path(file_okay=False, path_type=Path)
as_json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print JSON on standard output and nothing else there."
)
seed_option = click.option(
    "--seed", type=click.IntRange(0, 2**63 - 1), default=0, help="Random seed."
)
strength_option = click.option(
    "--strength", default=1.0, help="Multiple of the scale; a negative one pushes the other way."
)
where_option = click.option(
    "--where",
    type=click.Choice(["all", "prompt", "generated"]),
    default="all",
    help="Tokens to steer; earlier turns of a chat are part of the prompt.",
)
temperature_option = click.option(
    "--temperature",
    default=0.0,
    help="Draw replies at this temperature (--seed says which); 0 takes the likeliest token.",
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
        help="Number format: auto (the checkpoint's own), float32, bfloat16, float16; "
        "by default that of the run, auto for a new one.",
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
    click.option(
        "--bits",
        type=click.Choice(["4", "8"]),
        callback=lambda ctx, param, value: None if value is None else int(value),
        help="Quantise the weights by bitsandbytes while they are loaded; by default as for the "
        "run. Such a model can be steered, but neither ablated nor merged into.",
    ),
    threads_option,
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
feature_option = click.option(
    "--feature", "indices", type=int, multiple=True, help="Index of a feature; may be given again."
)
choice_options = group_options(
    feature_option,
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


def load(name: str, options: Options) -> LanguageModel:
    """Load a model, with nothing printed on the way.

    Args:
        name: See `melbo.load`.
        options: Options of `LOADING`, any of them left out or None.
    """
    messages: Any = logging  # transformers gives its functions no types
    messages.disable_progress_bar()
    messages.set_verbosity_error()
    if options.pop("tf32", False):
        torch.set_float32_matmul_precision("high")
    given = {key: value for key, value in options.items() if value is not None}
    with Waiting(f"loading {name}"):
        return load_from(name, **given)


def require_model(run: Path) -> Provenance:
    """Account of the map behind a run, which has to be of a language model.

    Raises:
        MelboError: The run cannot be read, or was not fitted on a language model.
    """
    fitted = Provenance.of(read_run(run))
    if fitted.model_name is None:
        raise MelboError(
            f"the run in {run} was not fitted on a language model: there is nothing to load"
        )
    return fitted


def load_for(run: Path, name: str | None, options: Options) -> LanguageModel:
    """Load the model that a run was fitted on; take the options of `LOADING` out.

    It is loaded as it was for the fit, where the options do not say otherwise.

    Args:
        run: The run folder.
        name: Where the model is now; where it was for the fit, if left out.
        options: Options of the command.

    Raises:
        MelboError: The run was not fitted on a language model, or the model is no longer where it
            was; and as `melbo.load`.
    """
    fitted = require_model(run)
    loading = take(options, *LOADING)
    remembered = {
        "dtype": fitted.model_dtype,
        "blocks": fitted.model_blocks,
        "bits": fitted.model_bits,
    }
    for key, value in remembered.items():
        if loading[key] is None:
            loading[key] = value
    place = name or _place_of(fitted, run)
    lm = load(place, loading)
    if name is None and fitted.model_name is not None:
        lm.name = fitted.model_name
    return lm


def _place_of(fitted: Provenance, run: Path) -> str:
    """Path or hub id of a run's model: its path when it was fitted, else the name typed then.

    Raises:
        MelboError: It was a path, and nothing is there now.
    """
    name, path = fitted.model_name or "", fitted.model_path
    if path is None or name == ALIAS:
        return name
    if Path(path).exists():
        return path
    if Path(name).exists():
        return name
    raise MelboError(
        f"the model of the run in {run} is no longer at {path}: say where it is by --model PATH"
    )


def causal_map(lm: LanguageModel, texts: Sequence[str], options: Options) -> CausalMap:
    """Map of directions, at the usual layers where the options give none.

    Args:
        lm: The model.
        texts: Prompts of the map.
        options: Options of the map, any of them left out.
    """
    settings = dict(options)
    prompts = as_prompts(lm, texts, {name: settings.pop(name, None) for name in READING})
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
    prompts = as_prompts(lm, texts, {name: settings.pop(name, None) for name in READING})
    defaults = {"source": None, "skip_first": False, "positions": "all", "read": "stream"}
    for name, value in defaults.items():
        if settings.pop(name) != value:
            raise MelboError(
                f"--{name.replace('_', '-')} is not for adapters: "
                "leave it out; --band says which blocks they edit"
            )
    return AdapterMap(lm, prompts, band, matrix=matrix or "attention", **settings)


def default_layers(
    lm: LanguageModel, shares: tuple[float, float] = USUAL_SHARES
) -> tuple[int, int]:
    """Source and target layer where none are given, with a block between them at least.

    Args:
        lm: The model.
        shares: Their shares of the depth.
    """
    return layers_at(lm.depth, shares)
