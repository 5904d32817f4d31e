"""Commands for sparse dictionaries: train them, look at them, hold a run against one."""

from pathlib import Path
from typing import Any

import click

from melbo.cli.dictionary_show import show_inspection, show_matches, show_trained
from melbo.cli.options import (
    LOADING,
    Options,
    as_json_option,
    default_layers,
    file,
    folder,
    group_options,
    load,
    loading_options,
    new_run_options,
    seed_option,
    take,
)
from melbo.cli.terminal import Command, next_step, print_json
from melbo.cli.threads import threads_option
from melbo.dictionary.activations import Contexts
from melbo.dictionary.architectures import ARCHITECTURES, make
from melbo.dictionary.inspection import inspect as inspect_text
from melbo.dictionary.matching import FEWEST, best_matches
from melbo.dictionary.neighbours import Neighbours
from melbo.dictionary.origin import Origin
from melbo.dictionary.saved import load as load_dictionary
from melbo.dictionary.saved import refuse_other
from melbo.dictionary.training import Training
from melbo.dictionary.training_run import split_contexts, train_on_text
from melbo.errors import MelboError
from melbo.evaluation.dictionary_pictures import matches_picture, neighbours_picture
from melbo.features.directions import FeatureSet
from melbo.features.provenance import Provenance
from melbo.features.saved import load_features
from melbo.models.language_model import LanguageModel
from melbo.models.text.documents import read_documents
from melbo.records import write_atomically


def _numbers(ctx: click.Context, param: click.Parameter, given: str | None) -> list[int]:
    """Numbers with commas between them.

    Raises:
        BadParameter: One is no whole number.
    """
    try:
        return [int(each) for each in given.split(",")] if given is not None else []
    except ValueError as err:
        raise click.BadParameter(
            f"got {given!r}, expected whole numbers with commas between them", ctx, param
        ) from err


text_options = group_options(
    click.option(
        "--text",
        "texts",
        type=file,
        multiple=True,
        help="File of text, or of texts as JSON lines; may be given again.",
    ),
    click.option(
        "--context", type=click.IntRange(min=2), default=256, help="Tokens that are read at a time."
    ),
)
picture_option = click.option("--picture", type=file, help="PNG file to draw.")
dictionary_argument = click.argument("dictionary", type=folder)


@click.group()
def dictionary() -> None:
    """Train sparse dictionaries, look at them, and find a run's directions in them."""


@dictionary.command(cls=Command)
@click.argument("model")
@text_options
@click.option(
    "--layers",
    callback=_numbers,
    help="Layers, with commas between them, all trained in one pass; by default at 8/30 of the "
    "depth.",
)
@click.option("--latents", default=4096, help="Number of latents.")
@click.option("--k", type=int, help="topk: latents that are active at once; by default 32.")
@click.option(
    "--architecture", type=click.Choice(ARCHITECTURES), default="topk", help="Kind of dictionary."
)
@click.option(
    "--sparsity",
    type=float,
    help="Weight λ of the penalty, for all but topk; activations are scaled to a mean distance "
    "of √d from their median.",
)
@click.option("--tokens", default=1_000_000, help="Number of tokens to train on.")
@click.option("--batch", default=Training.batch, help="Tokens of a step.")
@click.option("--rate", default=Training.rate, help="Highest learning rate.")
@seed_option
@new_run_options
@loading_options
@as_json_option
def train(model: str, out: Path, force: bool, seed: int, as_json: bool, **options: Any) -> None:
    """Train a dictionary of MODEL on text, and measure it on the last tenth of the text.

    Text is read again from its beginning where it has fewer tokens than are asked for. With several
    layers, each dictionary has a folder of its own in that of --out.
    """
    texts = read_documents(options.pop("texts"))
    settings = _settings(options)
    refuse_other(out, force)
    lm = load(model, take(options, *LOADING))
    layers = options["layers"] or default_layers(lm)[:1]
    folders = [out] if len(layers) == 1 else [out / f"layer-{lm.layer(each)}" for each in layers]
    for each in folders:
        refuse_other(each, force)
    kind = take(options, "architecture", "latents", "k")
    contexts, held_out = split_contexts(Contexts.of(lm, texts, options["context"]))
    trained, course = train_on_text(
        lm,
        contexts,
        held_out,
        layers,
        lambda: make(kind["architecture"], lm.width, kind["latents"], kind["k"], seed),
        settings,
        seed,
    )
    for saved, place in zip(trained, folders, strict=True):
        saved.save(place, force)
    if as_json:
        told = [
            {"folder": str(place), **each.metadata}
            for each, place in zip(trained, folders, strict=True)
        ]
        print_json({"course": course.describe(), "dictionaries": told})
        return
    show_trained(trained, course, folders)


def _settings(options: Options) -> Training:
    """Settings of a training run, taken out of the options.

    Raises:
        MelboError: λ is missing, or is given to an architecture that has none.
    """
    sparsity, kind = options.pop("sparsity"), options["architecture"]
    if (sparsity is None) != (kind == "topk"):
        raise MelboError(
            f"got {'no ' if sparsity is None else ''}--sparsity for {kind}: "
            "topk takes --k, all others take --sparsity (5, say: more makes fewer latents active)"
        )
    return Training(sparsity=sparsity or 0.0, **take(options, "tokens", "batch", "rate"))


@dictionary.command(cls=Command)
@dictionary_argument
@text_options
@click.option("--model", help="Path or hub id of the model, if it has moved.")
@click.option(
    "--latent", "latents", type=int, multiple=True, help="Latent to show; may be given again."
)
@click.option(
    "--random", type=click.IntRange(min=0), default=5, help="Number of latents drawn to show."
)
@picture_option
@seed_option
@loading_options
@as_json_option
def inspect(
    dictionary: Path,
    texts: tuple[Path, ...],
    context: int,
    model: str | None,
    latents: tuple[int, ...],
    random: int,
    picture: Path | None,
    seed: int,
    as_json: bool,
    **options: Any,
) -> None:
    """Measure a DICTIONARY: its directions, and with --text how well it does on text.

    Text should be such as it was not trained on.
    """
    found, origin = load_dictionary(dictionary), Origin.read(dictionary)
    on_text = None
    if texts:
        documents = read_documents(texts)
        lm = _model_of(origin, dictionary, model, options)
        layer = origin.check(found, lm)
        contexts = Contexts.of(lm, documents, context)
        on_text = inspect_text(lm, found, layer, contexts, latents, random, seed)
    geometry = Neighbours.of(found.W_dec, seed)
    if picture is not None:
        write_atomically({picture: neighbours_picture(geometry)})
    if as_json:
        print_json(
            {
                "origin": vars(origin),
                "geometry": geometry.describe(),
                "text": None if on_text is None else on_text.describe(),
            }
        )
        return
    show_inspection(found, origin, geometry, on_text)
    if on_text is None:
        next_step("dictionary", "inspect", dictionary, "--text", "FILE")
    else:
        next_step("dictionary", "compare", "RUN", dictionary)


def _model_of(origin: Origin, place: Path, name: str | None, options: Options) -> LanguageModel:
    """Load the model of a dictionary, in the precision that its activations were read in.

    Raises:
        MelboError: The folder names no model, and none is given.
    """
    path = origin.model_path
    known = name or (path if path and Path(path).exists() else origin.model_name)
    if known is None:
        raise MelboError(f"{place} names no model: say which by --model")
    if options["dtype"] is None:
        options["dtype"] = origin.model_dtype
    lm = load(known, options)
    if name is None and origin.model_name is not None:
        lm.name = origin.model_name
    return lm


@dictionary.command(cls=Command)
@click.argument("run", type=folder)
@dictionary_argument
@click.option(
    "--draws", type=click.IntRange(min=FEWEST), default=FEWEST, help="Draws of each null."
)
@picture_option
@seed_option
@threads_option
@as_json_option
def compare(
    run: Path, dictionary: Path, draws: int, picture: Path | None, seed: int, as_json: bool
) -> None:
    """Find the directions of a RUN among those of a DICTIONARY, beside two nulls.

    The nulls have random rows with the covariance of the dictionary's, and the dictionary turned at
    random.
    """
    features = _directions(run)
    found, origin = load_dictionary(dictionary), Origin.read(dictionary)
    fitted = Provenance.of(features.meta)
    origin.check_same(fitted.model_name, fitted.model_sha256)
    matches = {
        name: best_matches(rows, found.W_dec, draws, seed)
        for name, rows in (("V", features.V), ("U", features.U))
    }
    if picture is not None:
        write_atomically({picture: matches_picture(matches)})
    if as_json:
        layers = {"V": features.source, "U": features.target, "dictionary": origin.layer}
        told = {name: each.describe() for name, each in matches.items()}
        print_json({"layers": layers, **told})
        return
    show_matches(matches, features, origin)
    nearest = int(matches["V"].latent[matches["V"].cosine.argmax()])
    next_step("dictionary", "inspect", dictionary, "--text", "FILE", "--latent", nearest)


def _directions(run: Path) -> FeatureSet:
    """Read a run of directions.

    Raises:
        MelboError: It holds adapters.
    """
    features = load_features(run)
    if not isinstance(features, FeatureSet):
        raise MelboError(f"{run} holds adapters, which are no directions: give a run of directions")
    return features
