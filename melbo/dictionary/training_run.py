"""Dictionaries of a model, from text to folders: trained, measured on held-out text, saved."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from melbo.dictionary.activations import ActivationStream, Contexts
from melbo.dictionary.base import Dictionary
from melbo.dictionary.inspection import Inspection, inspect
from melbo.dictionary.origin import Origin
from melbo.dictionary.saved import save
from melbo.dictionary.training import SAMPLE, Course, Training, train
from melbo.errors import MelboError
from melbo.models.language_model import LanguageModel

#: Share of the contexts, at the end of the text, that is held out.
HELD_OUT = 0.1


@dataclass(frozen=True)
class Trained:
    """A dictionary as training left it.

    Attributes:
        dictionary: The dictionary, of raw activations.
        origin: The model and the layer.
        inspection: Its quality on held-out text.
        metadata: All about it, for its folder.
    """

    dictionary: Dictionary
    origin: Origin
    inspection: Inspection
    metadata: dict[str, Any]

    def save(self, folder: str | Path, force: bool = False) -> Path:
        """Write the folder, and return it; see `melbo.dictionary.save`.

        Args:
            folder: The folder.
            force: Whether a dictionary that is there already may be replaced.
        """
        return save(self.dictionary, folder, self.metadata, force)


def split_contexts(contexts: Contexts) -> tuple[Contexts, Contexts]:
    """Contexts to train on, and those at the end of the text, which are held out.

    Args:
        contexts: All contexts, two or more.

    Raises:
        MelboError: There is only one.
    """
    held = max(1, round(HELD_OUT * len(contexts)))
    if held == len(contexts):
        raise MelboError(
            f"the text is one context of {contexts.ids.shape[1]} tokens, and some text has to be "
            "held out: give more text, or shorter contexts"
        )
    every = torch.arange(len(contexts))
    return contexts.take(every[:-held]), contexts.take(every[-held:])


def _enough(contexts: Contexts, tokens: int, seed: int) -> Contexts:
    """As many contexts, drawn at random, as have a number of tokens: others need not be read."""
    number = math.ceil(len(contexts) * tokens / max(contexts.rows, 1))
    if number >= len(contexts):
        return contexts
    order = torch.randperm(len(contexts), generator=torch.Generator().manual_seed(seed))
    return contexts.take(order[:number])


def train_on_text(
    lm: LanguageModel,
    contexts: Contexts,
    held_out: Contexts,
    layers: Sequence[int],
    make: Callable[[], Dictionary],
    settings: Training,
    seed: int = 0,
    progress: bool = True,
) -> tuple[list[Trained], Course]:
    """Train a dictionary for each layer, in one pass over the text, and measure it.

    Args:
        lm: The model.
        contexts: Text to train on.
        held_out: Text to measure on.
        layers: Indices into ``hidden_states``, negative from the end, one or more.
        make: Makes a dictionary that is not trained yet.
        settings: Settings of the training.
        seed: Random seed of the order of the text.
        progress: Whether to draw bars.

    Raises:
        MelboError: A layer is given twice; and as `train`, `ActivationStream` and `inspect`.
    """
    at = [lm.layer(layer) for layer in layers]
    if len(set(at)) < len(at):
        raise MelboError(f"got the layers {list(layers)}: give each layer once")
    settings.check()
    read = _enough(contexts, settings.tokens, seed)
    stream = ActivationStream(lm, read, at, seed=seed, progress=progress)
    batches = stream.batches(settings.batch)
    dictionaries = [make().to(lm.device) for _ in at]
    begun = time.perf_counter()
    # the model reads what the buffer holds
    sample = stream.sample(SAMPLE)
    waited = time.perf_counter() - begun
    course = train(dictionaries, batches, sample, settings, progress)
    course = replace(course, seconds=course.seconds + waited, reading=course.reading + waited)
    trained = []
    for i, (layer, dictionary) in enumerate(zip(at, dictionaries, strict=True)):
        found = inspect(lm, dictionary, layer, held_out, progress=progress)
        origin = Origin.of(lm, layer)
        told = found.describe()
        del told["snippets"]
        metadata = {
            **origin.metadata(contexts.ids.shape[1], lm.depth),
            "seed": seed,
            "training": asdict(settings),
            "training_tokens": course.tokens,
            "text_tokens": contexts.rows,
            "dead_latents": course.dead[i],
            "held_out": told,
        }
        trained.append(Trained(dictionary, origin, found, metadata))
    return trained, course
