"""A model that several conversations share: one reply at a time, each under its own steering."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Lock
from typing import Any

import torch
from transformers import StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from melbo.features.conversation import Turn, answer, conversation_form
from melbo.features.generate import check_temperature
from melbo.features.provenance import Provenance
from melbo.features.run_folder import read_run
from melbo.features.saved import load_steerable
from melbo.features.steerable import Steerable
from melbo.models.language_model import LanguageModel
from melbo.models.text.prompts import Prompts

# seconds between looks at whether a reply that waits for another is still wanted
_LOOK = 0.05


@dataclass(frozen=True)
class SteeredModel:
    """A model with the features of a run.

    Attributes:
        lm: The model.
        features: The features.
        form: Form in which conversations are read.
        turn: Held by whoever replies; the same for all runs that share the model.
        closing: Set when no reply is wanted any more.
        pause: Seconds between two texts of a reply that grows, at least.
    """

    lm: LanguageModel
    features: Steerable
    form: Prompts
    turn: Any
    closing: Event
    pause: float = 0.05

    def reply(
        self,
        turns: Sequence[Turn],
        mix: Mapping[int, float],
        max_new_tokens: int,
        temperature: float = 0.0,
        seed: int = 0,
        on_text: Callable[[str], None] = lambda text: None,
        stop: Event | None = None,
    ) -> str | None:
        """Reply to the last turn of a conversation, after the replies that are being made.

        Args:
            turns: The turns so far, the user's last.
            mix: Strength of each feature that steers; none for the unsteered model.
            max_new_tokens: Length of the reply at most.
            temperature: 0 for a greedy reply.
            seed: Random seed of a drawn one.
            on_text: Called with the whole reply so far, again and again while it grows.
            stop: Ends the reply after the token that is being computed, once it is set.

        Returns:
            The reply; None where it was stopped.

        Raises:
            MelboError: The conversation has become too long, or a strength or the temperature is no
                number that can be worked with.
        """
        check_temperature(temperature)
        stop = Event() if stop is None else stop
        edits = [self.features[i].edit(strength=s) for i, s in mix.items() if s]
        while not self.turn.acquire(timeout=_LOOK):
            if stop.is_set() or self.closing.is_set():
                return None
        try:
            if stop.is_set() or self.closing.is_set():
                return None
            torch.manual_seed(seed)
            said = answer(
                self.lm,
                self.form,
                turns,
                edits,
                max_new_tokens,
                temperature,
                streamer=_Stream(self.lm.tokenizer, self.form.prefix or "", on_text, self.pause),
                stopping_criteria=StoppingCriteriaList([Stopped((stop, self.closing))]),
            )
        finally:
            self.turn.release()
        return None if stop.is_set() or self.closing.is_set() else said


class Models:
    """Models of runs, each loaded when it is first asked for; runs of one model share it.

    Args:
        load: Function that loads the model of a run folder.
    """

    def __init__(self, load: Callable[[Path], LanguageModel]) -> None:
        self._load = load
        self._loading, self._closing = Lock(), Event()
        self._loaded: dict[Any, tuple[LanguageModel, Any]] = {}

    def of(self, folder: Path) -> SteeredModel:
        """The model of a run, with the run's features.

        Args:
            folder: The run folder.

        Raises:
            MelboError: The run has no model, or it cannot be loaded, or is another one; or it has
                no chat template.
        """
        made = Provenance.of(read_run(folder))
        key = (made.model_sha256 or folder, made.model_dtype, made.model_bits, made.model_blocks)
        with self._loading:
            if key not in self._loaded:
                self._loaded[key] = self._load(folder), Lock()
            lm, turn = self._loaded[key]
            features = load_steerable(folder, lm)
            form = conversation_form(lm, features)
            return SteeredModel(lm, features, form, turn, self._closing)

    def close(self) -> None:
        """End all replies, for good."""
        self._closing.set()


class _Stream(BaseStreamer):
    """Receiver of tokens that tells the text so far."""

    def __init__(
        self, tokenizer: Any, begun: str, on_text: Callable[[str], None], pause: float
    ) -> None:
        self._tokenizer, self._begun, self._on_text = tokenizer, begun, on_text
        self._pause, self._told = pause, -math.inf
        self._tokens: list[int] | None = None

    def put(self, value: torch.Tensor) -> None:
        """Take the prompt, then one token after the other."""
        if self._tokens is None:
            self._tokens = []
            return
        self._tokens += value.reshape(-1).tolist()
        # the whole text is decoded each time, as a token may change the ones before it
        if time.monotonic() - self._told >= self._pause:
            text = self._tokenizer.decode(self._tokens, skip_special_tokens=True)
            # the last character may lack bytes that are to come
            self._on_text(self._begun + text.rstrip("\ufffd"))
            self._told = time.monotonic()

    def end(self) -> None:
        """Leave the rest to whoever gets the reply."""


class Stopped(StoppingCriteria):
    """Criterion that ends a reply that nobody wants any more."""

    def __init__(self, stops: Sequence[Event]) -> None:
        self._stops = stops

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        """Tell for each row whether it ends here."""
        stopped = any(stop.is_set() for stop in self._stops)
        return torch.full((len(input_ids),), stopped, device=input_ids.device)
