"""Words in and out of a terminal, of whatever encoding."""

import codecs
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click


class Command(click.Command):
    """A command that refuses text whose bytes are not valid in the terminal's encoding.

    So it does paths, which safetensors reads in UTF-8 only.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse arguments as click does, then look at the text among them.

        Raises:
            BadParameter: A text holds bytes that could not be decoded; names its option.
        """
        rest = super().parse_args(ctx, args)
        for param in self.get_params(ctx):
            if any(is_broken(text) for text in _texts(ctx.params.get(param.name or ""))):
                raise click.BadParameter("the text is not valid UTF-8: write it anew", ctx, param)
        return rest


def _texts(value: Any) -> Iterator[str]:
    """Texts and paths of an option's value, which may hold several of them."""
    if isinstance(value, (str, Path)):
        yield str(value)
    elif isinstance(value, dict):
        yield from _texts([*value.keys(), *value.values()])
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from _texts(part)


def is_broken(text: str) -> bool:
    """Tell whether a text holds bytes that could not be decoded (lone surrogates)."""
    return any("\ud800" <= char <= "\udfff" for char in text)


def open_streams() -> None:
    r"""Let standard streams take any text: no character ends a command after its work.

    Characters that the encoding of an output lacks are written as ``\u65e5``; bytes of the input
    that cannot be decoded are kept, for `is_broken` to find.
    """
    for stream, errors in (
        (sys.stdout, "backslashreplace"),
        (sys.stderr, "backslashreplace"),
        (sys.stdin, "surrogateescape"),
    ):
        # a stream that stands in for the terminal's may lack the method
        change = getattr(stream, "reconfigure", None)
        if change is not None:
            change(errors=errors)


def print_json(value: Any) -> None:
    """Print a value as JSON on one line, in ASCII where the output is not UTF-8."""
    click.echo(json.dumps(value, ensure_ascii=not _is_utf8()))


def _is_utf8() -> bool:
    """Tell whether standard output takes every character."""
    try:
        return codecs.lookup(getattr(sys.stdout, "encoding", None) or "utf-8").name == "utf-8"
    except LookupError:
        return False
