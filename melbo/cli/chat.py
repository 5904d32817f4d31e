"""A conversation with a steered model in the terminal."""

from contextlib import AbstractContextManager, nullcontext

import click
from transformers import TextStreamer

from melbo.cli.terminal import is_broken
from melbo.errors import MelboError
from melbo.features.generate import check_temperature
from melbo.features.steerable import Steerable, check_strength, steer
from melbo.models.decoding.decode import continued
from melbo.models.edits import Where
from melbo.models.language_model import LanguageModel
from melbo.models.text.prompts import Prompts, pad_rows

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
        if getattr(lm.tokenizer, "chat_template", None) is None:
            raise MelboError(
                f"the tokenizer of {lm.name} has no chat template: use melbo sample instead"
            )
        check_strength(strength)
        check_temperature(temperature)
        features[0].edit(where=where)  # refuses a place that such features do not act at
        self.lm, self.features = lm, features
        self.where, self.temperature = where, temperature
        self.feature, self.strength = feature, strength
        self.max_new_tokens = max_new_tokens
        self.turns: list[dict[str, str]] = []
        if form is not None and form.kind == "text":
            raise MelboError(
                "a conversation needs a chat template, --text reads prompts without one: "
                "leave it out, or use melbo sample"
            )
        fitted = features.provenance.prompts if form is None else form
        if fitted is None or fitted.kind == "text":
            fitted = Prompts((), (), "chat")
        self._form = fitted

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
        told = self._form.conversation(self.lm, [*self.turns, turn])
        ids, mask = pad_rows([told], self.lm.pad, side="left")
        tokenizer, prefix = self.lm.tokenizer, self._form.prefix or ""
        streamer = None
        if stream:
            click.echo(prefix, nl=False)
            streamer = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
        with self._steering():
            out = continued(
                self.lm, ids, mask, self.max_new_tokens, self.temperature, streamer=streamer
            )
        new = out.sequences[0, ids.shape[1] :]
        answer = prefix + str(tokenizer.decode(new, skip_special_tokens=True))
        self.turns += [turn, {"role": "assistant", "content": answer}]
        return answer

    def _steering(self) -> AbstractContextManager[None]:
        """The ``with`` block in which the chosen feature steers."""
        if self.feature is None:
            return nullcontext()
        return steer(self.lm, self.features[self.feature], strength=self.strength, where=self.where)

    def _state(self) -> str:
        """The steering feature and its strength, in words."""
        if self.feature is None:
            return "unsteered"
        return f"feature {self.feature} × {self.strength:g}"
