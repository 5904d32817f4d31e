"""A conversation with a steered model in the terminal."""

from contextlib import nullcontext

import click
from transformers import TextStreamer

from melbo.errors import MelboError
from melbo.features.steerable import Steerable, check_strength, steer
from melbo.models.decode import continued
from melbo.models.language_model import LanguageModel
from melbo.models.prompts import render_chat

_HELP = "/feature N steer with feature N · /strength X multiple of the scale · /off unsteered · /reset forget the conversation · /quit"


class Chat:
    """Turns of a conversation; what steers it can change between them.

    Args:
        lm: The model.
        bank: Its features.
        feature: Which one steers, or None.
        strength: Multiple of the scale.
        max_new_tokens: Length of a reply at most.

    Raises:
        MelboError: A tokenizer without a chat template, or a strength that is not finite.
    """

    def __init__(
        self,
        lm: LanguageModel,
        features: Steerable,
        feature: int | None,
        strength: float,
        max_new_tokens: int,
    ) -> None:
        if getattr(lm.tokenizer, "chat_template", None) is None:
            raise MelboError(
                f"the tokenizer of {lm.name} has no chat template: use melbo sample instead"
            )
        check_strength(strength)
        self.lm, self.features, self.feature, self.strength, self.max_new_tokens = (
            lm,
            features,
            feature,
            strength,
            max_new_tokens,
        )
        self.turns: list[dict[str, str]] = []
        system = features.meta.get("map", {}).get("prompts", {}).get("system")
        self._head = [] if system is None else [{"role": "system", "content": system}]

    def loop(self) -> None:
        """Read turns from standard input until /quit or its end."""
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
                except MelboError as err:  # too long a conversation, say; it can go on
                    click.echo(f"error: {err}", err=True)

    def command(self, line: str) -> str:
        """Carry out a line that begins with a slash; what to tell the user."""
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
        """The model's answer to one more turn of the user."""
        said = {"role": "user", "content": text}
        rendered = render_chat(self.lm, [*self._head, *self.turns, said])
        inputs = self.lm.tokenizer(rendered, add_special_tokens=False, return_tensors="pt")
        ids = inputs["input_ids"]
        streamer = (
            TextStreamer(self.lm.tokenizer, skip_prompt=True, skip_special_tokens=True)
            if stream
            else None
        )
        steering = (
            nullcontext()
            if self.feature is None
            else steer(self.lm, self.features[self.feature], strength=self.strength)
        )
        with steering:
            out = continued(
                self.lm, ids, inputs["attention_mask"], self.max_new_tokens, streamer=streamer
            )
        answer = self.lm.tokenizer.decode(
            out.sequences[0, ids.shape[1] :], skip_special_tokens=True
        )
        self.turns += [said, {"role": "assistant", "content": answer}]
        return answer

    def _state(self) -> str:
        return (
            "unsteered" if self.feature is None else f"feature {self.feature} × {self.strength:g}"
        )
