"""Words in and out of a terminal, of whatever encoding and width."""

import codecs
import json
import shlex
import shutil
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from melbo.cli.sections import write_sections

_COLUMNS, _MOST_COLUMNS = 80, 120
# characters that would steer the terminal; line ends and tabs stay
_STEERING = {c: "\ufffd" for c in (*range(32), *range(127, 160)) if chr(c) not in "\n\t"}


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

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the options under headings."""
        write_sections(self.get_params(ctx), ctx, formatter)


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


def columns() -> int:
    """Width that is written in: that of the terminal, 80 columns where there is none."""
    return max(40, min(shutil.get_terminal_size((_COLUMNS, 24)).columns, _MOST_COLUMNS))


def console() -> Console:
    """Console that tables are drawn on."""
    return Console(width=columns(), highlight=False)


def broken_at_words(text: str, indent: int = 0, lines: int | None = None) -> str:
    """A text on lines that fit; what is longer than a line, such as a path, stays whole.

    Nothing in it steers the terminal.

    Args:
        text: The text; its own line ends stay.
        indent: Number of spaces before each line but the first.
        lines: Number of lines at most; what is left out is told by an ellipsis.
    """
    return "\n".join(
        textwrap.fill(
            line,
            columns(),
            subsequent_indent=" " * indent,
            break_long_words=False,
            break_on_hyphens=False,
            max_lines=lines,
            placeholder=" …",
        )
        for line in text.translate(_STEERING).split("\n")
    )


def tell(text: str, indent: int = 2, err: bool = False) -> None:
    """Print a text, broken at words.

    Args:
        text: The text.
        indent: See `broken_at_words`.
        err: Whether to print on standard error.
    """
    click.echo(broken_at_words(text, indent), err=err)


def say(text: str) -> None:
    """Print a text on standard error, broken at words."""
    tell(text, err=True)


def next_step(*words: object, trust: bool = False, err: bool = False) -> None:
    """Print the command to go on with, as a shell takes it, on several lines where it is long.

    Args:
        words: Words of the command, without ``melbo``.
        trust: Whether the model needed --trust-remote-code, which no run turns on by itself.
        err: Whether to print on standard error, beside an output that scripts read.
    """
    quoted = [shlex.quote(str(word)) for word in words] + ["--trust-remote-code"] * trust
    lines = ["next: melbo"]
    for word in quoted:
        # a backslash is to fit at the end as well
        if len(lines[-1]) + len(word) + 3 > columns() and len(lines[-1].split()) > 1:
            lines.append("   ")
        lines[-1] += f" {word}"
    click.echo(" \\\n".join(lines), err=err)
