"""Options that say how prompts are read, and the prompts that they describe."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from melbo.errors import MelboError
from melbo.features.provenance import Provenance
from melbo.models.language_model import LanguageModel
from melbo.models.text.prompts import Prompts, read_texts

READING = ("system", "text", "template", "template_args", "prefix")
Options = dict[str, Any]
Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]
file = click.Path(dir_okay=False, path_type=Path)


def group_options(*options: Decorator) -> Decorator:
    """Several options as one decorator, listed in this order."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def _arguments(
    ctx: click.Context, param: click.Parameter, given: tuple[str, ...]
) -> dict[str, Any] | None:
    """Arguments KEY=VALUE by name, each value read as JSON where it is JSON; None without any.

    Raises:
        BadParameter: One has no ``=``, or a key comes twice.
    """
    found: dict[str, Any] = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not (key and equals):
            raise click.BadParameter(f"got {text!r}, expected KEY=VALUE", ctx, param)
        if key in found:
            raise click.BadParameter(f"got {key} twice: give each argument once", ctx, param)
        try:
            found[key] = json.loads(value)
        except ValueError:
            found[key] = value
    return found or None


prompt_options = group_options(
    click.option("--prompt", "prompt", multiple=True, help="A prompt; may be given again."),
    click.option("--prompts", "prompt_file", type=file, help="File with one prompt a line."),
)
reading_options = group_options(
    click.option("--system", help="System message; by default the chat template's own."),
    click.option(
        "--text", is_flag=True, help="Read the prompts as they are, without a chat template."
    ),
    click.option(
        "--template", metavar="NAME", help="Chat template by name, where the tokenizer has several."
    ),
    click.option(
        "--template-arg",
        "template_args",
        metavar="KEY=VALUE",
        multiple=True,
        callback=_arguments,
        help="Argument of the chat template, say enable_thinking=false; the value is JSON, or else "
        "text. May be given again.",
    ),
    click.option("--prefix", help="Beginning of the reply, which prompts end with."),
)


def take(options: Options, *names: str) -> Options:
    """Take some options out of all of them."""
    return {name: options.pop(name) for name in names}


def prompt_words(options: Options) -> list[str]:
    """Words of a command line that ask for the same prompts again.

    Args:
        options: Options of the command, with those of the prompts.
    """
    words = [word for text in options["prompt"] for word in ("--prompt", text)]
    path = options["prompt_file"]
    return words if path is None else [*words, "--prompts", str(path)]


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


def as_prompts(lm: LanguageModel, texts: Sequence[str], reading: Options) -> Prompts:
    """Texts as prompts of a model.

    Args:
        lm: The model.
        texts: The texts.
        reading: Options of `READING`, any of them left out or None.

    Raises:
        MelboError: An option of chats without a chat template; and as `Prompts`.
    """
    kind, given = _settings(reading)
    return Prompts.text(lm, texts) if kind == "text" else Prompts.chat(lm, texts, **given)


def form_for(fitted: Provenance, options: Options) -> Prompts | None:
    """Form of new prompts: that of the fit's, where the options do not say otherwise.

    Arguments of a chat template go on top of the fit's, unless the template is another one.

    Args:
        fitted: Origin of the features.
        options: Options of the command; those of `READING` are taken out.

    Returns:
        Prompts without texts, to be used with `Prompts.like`; None where no option is given.

    Raises:
        MelboError: As `as_prompts`.
    """
    kind, given = _settings(take(options, *READING))
    then = fitted.prompts
    if kind is None:
        return None
    if kind == "text":
        return Prompts((), (), "text")
    if then is None or then.kind == "text":
        return Prompts((), (), "chat", **given)
    if "template_args" in given and "template" not in given:
        given["template_args"] = {**(then.template_args or {}), **given["template_args"]}
    elif "template" in given:
        given.setdefault("template_args", None)
    return replace(then, texts=(), tokens=(), **given)


def _settings(reading: Options) -> tuple[str | None, Options]:
    """Kind of prompts that options of `READING` ask for, None where none is given, and settings.

    Raises:
        MelboError: An option of chats without a chat template.
    """
    given = {name: value for name, value in reading.items() if value is not None}
    if not given.pop("text", False):
        return ("chat" if given else None), given
    if given:
        names = " and ".join(f"--{name.rstrip('s').replace('_', '-')}" for name in given)
        raise MelboError(
            f"{names} needs a chat template, --text reads prompts without one: "
            "leave one of them out"
        )
    return "text", given
