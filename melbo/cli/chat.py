"""A conversation with a steered model in the terminal."""

from typing import Any

import click
from torch import Tensor
from transformers import TextStreamer

from melbo.cli.terminal import is_broken
from melbo.errors import MelboError
from melbo.features.conversation import answer, conversation_form
from melbo.features.generate import check_temperature
from melbo.features.steerable import Steerable, check_strength
from melbo.models.edits import Edit, Where
from melbo.models.language_model import LanguageModel
from melbo.models.text.prompts import Prompts

_HELP = (
    "/feature N steer with feature N · /strength X multiple of the scale · /off unsteered · "
    "/reset forget the conversation · /quit"
)


class Chat:
    """A conversation with a model; the steering feature can change between its turns.

    What is fed is read and checked as the prompts of a fit are.

    Args:
        lm: The model.
        features: Its features.
        feature: Index of the feature that steers, or None.
        strength: Multiple of the scale.
        max_new_tokens: Length of a reply at most.
        where: Tokens to steer, see `steer`; earlier turns count as prompt.
        temperature: 0 for greedy replies, see `melbo.generate`.
        form: Prompts whose system message, chat template and beginning of a reply are used; those
            that the features were fitted with, if left out.

    Attributes:
        turns: The conversation so far, without the system message.

    Raises:
        MelboError: The tokenizer has no chat template or prompts are to be read without one, the
            features do not act there, or the strength or the temperature is no number that can be
            worked with.
    """

    def __init__(
        self,
        lm: LanguageModel,
        features: Steerable,
        feature: int | None,
        strength: float,
        max_new_tokens: int,
        where: Where = "all",
        temperature: float = 0.0,
        form: Prompts | None = None,
    ) -> None:
        self._form = conversation_form(lm, features, form)
        check_strength(strength)
        check_temperature(temperature)
        features[0].edit(where=where)  # refuses a place that such features do not act at
        self.lm, self.features = lm, features
        self.where, self.temperature = where, temperature
        self.feature, self.strength = feature, strength
        self.max_new_tokens = max_new_tokens
        self.turns: list[dict[str, str]] = []

    def loop(self) -> None:
        """Read turns from standard input until /quit or the end of the input."""
        click.echo(_HELP, err=True)
        while True:
            try:
                line = input(f"[{self._state()}] you: ").strip()
            except EOFError:
                click.echo()
                return
            if line == "/quit":
                return
            if line.startswith("/"):
                click.echo(self.command(line), err=True)
            elif line:
                try:
                    self.reply(line, stream=True)
                except MelboError as err:
                    # a conversation that has become too long, say: /reset lets it go on
                    click.echo(f"error: {err}", err=True)

    def command(self, line: str) -> str:
        """Carry out a line that begins with a slash; returns the line to print."""
        name, *rest = line.split()
        try:
            if name == "/feature":
                self.feature = self.features.check_index(int(rest[0]))
            elif name == "/strength":
                strength = float(rest[0])
                check_strength(strength)
                self.strength = strength
            elif name == "/off":
                self.feature = None
            elif name == "/reset":
                self.turns.clear()
            else:
                return _HELP
        except (ValueError, IndexError) as err:
            return str(err) if isinstance(err, MelboError) else f"{name} needs a number; {_HELP}"
        return self._state()

    def reply(self, text: str, stream: bool = False) -> str:
        """Reply to one more turn of the user.

        Args:
            text: The user's turn.
            stream: Whether the reply is printed as it comes.

        Raises:
            MelboError: The turn is not valid UTF-8, or the conversation has become too long.
        """
        if is_broken(text):
            raise MelboError("this turn is not valid UTF-8: write it anew")
        turn = {"role": "user", "content": text}
        turns = [*self.turns, turn]
        streamer = _Printed(self.lm.tokenizer, self._form.prefix or "") if stream else None
        said = answer(
            self.lm,
            self._form,
            turns,
            self._edits(),
            self.max_new_tokens,
            self.temperature,
            streamer=streamer,
        )
        self.turns = [*turns, {"role": "assistant", "content": said}]
        return said

    def _edits(self) -> list[Edit]:
        """The edit by which the chosen feature steers, if there is one."""
        if self.feature is None:
            return []
        self.features.check_model(self.lm)
        return [self.features[self.feature].edit(strength=self.strength, where=self.where)]

    def _state(self) -> str:
        """The steering feature and its strength, in words."""
        if self.feature is None:
            return "unsteered"
        return f"feature {self.feature} × {self.strength:g}"


class _Printed(TextStreamer):
    """Printer of a reply as it grows, from the beginning that it is given.

    Args:
        tokenizer: The tokenizer.
        begun: That beginning.
    """

    def __init__(self, tokenizer: Any, begun: str) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._begun = begun

    def put(self, value: Tensor) -> None:
        """Take the prompt, which has been read without complaint, then token after token."""
        if self.next_tokens_are_prompt:
            click.echo(self._begun, nl=False)
        super().put(value)  # type: ignore[no-untyped-call]
