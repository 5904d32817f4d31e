"""The command line, the thinnest shell: each command is imported when it is called."""

import ast
import sys
from importlib import import_module
from pathlib import Path

import click

from melbo.cli.terminal import is_broken, open_streams
from melbo.cli.threads import prepare
from melbo.errors import MelboError
from melbo.models.loading.place import find_place

#: Commands in the order of use, and the module of each.
COMMANDS = {
    "demo": "find",
    "openings": "openings",
    "audit": "audit",
    "fit": "find",
    "calibrate": "find",
    "rank": "use",
    "select": "select",
    "sample": "use",
    "chat": "use",
    "ablate": "write",
    "watch": "use",
    "contrast": "contrast",
    "compare": "compare",
    "dictionary": "dictionary",
    "bilinear": "bilinear",
    "report": "use",
    "explore": "explore",
    "export": "write",
    "name": "name",
}
#: Commands whose first argument is a model.
OF_A_MODEL = {
    *(("openings",), ("audit",), ("fit",), ("calibrate",), ("contrast",), ("compare",)),
    *(("dictionary", "train"), ("bilinear", "trace")),
}

_HELP = {"-h", "--help"}


class _Commands(click.Group):
    """Commands that are imported when they are called, so that listing them needs no torch."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of the commands, in the order of use."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command; None where there is no such command."""
        if cmd_name not in COMMANDS:
            return None
        # imported here: listing commands needs no bar
        from melbo.progress import Waiting

        with Waiting("starting"):
            command = getattr(import_module(f"melbo.cli.{COMMANDS[cmd_name]}"), cmd_name)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command of a command line; a model that is nowhere is refused before.

        Importing a command takes seconds, and a mistyped name need not wait for it.
        """
        for name in OF_A_MODEL:
            rest = args[len(name) :]
            if tuple(args[: len(name)]) == name and rest and _is_name(rest):
                find_place(rest[0])
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands with their help."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, first_line(name)) for name in COMMANDS])


def _is_name(rest: list[str]) -> bool:
    """Tell whether arguments begin with a name, to be looked up before they are parsed."""
    return not rest[0].startswith("-") and not is_broken(rest[0]) and not _HELP & set(rest)


def first_line(name: str) -> str:
    """First line of a command's help, read from its source, so that nothing is imported for it."""
    source = Path(__file__).with_name(f"{COMMANDS[name]}.py").read_text(encoding="utf-8")
    functions = (node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef))
    command = next(function for function in functions if function.name == name)
    return (ast.get_docstring(command) or "").partition("\n")[0]


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": sorted(_HELP), "show_default": True},
)
@click.version_option(package_name="melbo")
def cli() -> None:
    """Find hidden behaviours of language models without labels."""


def main(group: click.Group = cli) -> None:
    """Run a command line: bad input is one line on standard error and exit code 2.

    Raises:
        RuntimeError: An error of torch's that is not for want of memory.
    """
    open_streams()
    prepare(sys.argv[1:])
    try:
        sys.exit(group(standalone_mode=False) or 0)
    except click.exceptions.NoArgsIsHelpError as err:
        click.echo(err.format_message(), err=True)
        sys.exit(2)
    except click.UsageError as err:
        command = err.ctx.command_path if err.ctx else "melbo"
        _fail(f"{err.format_message()} (see {command} --help)")
    except (MelboError, click.ClickException) as err:
        # the library names its own argument
        _fail(str(err).replace("force=True", "--force"))
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted", err=True)
        sys.exit(130)
    except RuntimeError as err:
        # torch's class is told by its name, so that torch is not imported for it
        if type(err).__name__ != "OutOfMemoryError":
            raise
        _fail(
            f"out of memory ({str(err).splitlines()[0]}): "
            "use fewer or shorter prompts, a smaller dtype, or another device"
        )


def _fail(message: str) -> None:
    """Print an error as one line and end the process."""
    click.echo("error: " + " ".join(message.split()), err=True)
    sys.exit(2)
