"""The command line, the thinnest shell: each command is imported when it is called."""

import sys
from importlib import import_module

import click

from melbo.errors import MelboError

#: Commands in the order of use: the module of each, and the first line of its help.
COMMANDS = {
    "demo": ("find", "Find latent behaviours of the bundled model in a few minutes."),
    "fit": ("find", "Learn features of MODEL from a few prompts."),
    "calibrate": ("find", "Find the norm at which the response of MODEL is half non-linear."),
    "rank": ("use", "Order the features of RUN by their effect on new prompts."),
    "select": ("select", "Find the feature of RUN with the best score by successive halving."),
    "sample": ("use", "Print replies of the model of RUN under its features."),
    "chat": ("use", "Talk to the model of RUN while a feature steers it."),
    "ablate": ("use", "Remove features of RUN from all matrices that write to the stream."),
    "watch": ("use", "List the prompts on which features of RUN fire without steering."),
    "contrast": ("contrast", "Make a supervised baseline for MODEL from contrasting prompts."),
    "compare": ("compare", "Compare recipes for features of MODEL, with controls."),
    "report": ("use", "Write RUN/report.html: settings, curves, features with their replies."),
    "export": ("use", "Write adapters of RUN as LoRAs that peft loads."),
}


class _Commands(click.Group):
    """Commands that are imported when they are called, so that listing them needs no torch."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of the commands, in the order of use."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command; None where there is no such command."""
        if cmd_name not in COMMANDS:
            return None
        module = import_module(f"melbo.cli.{COMMANDS[cmd_name][0]}")
        command = getattr(module, cmd_name)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands with their help."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True},
)
@click.version_option(package_name="melbo")
def cli() -> None:
    """Find hidden behaviours of language models without labels."""


def main(group: click.Group = cli) -> None:
    """Run a command line: bad input is one line on standard error and exit code 2.

    Raises:
        RuntimeError: An error of torch's that is not for want of memory.
    """
    try:
        sys.exit(group(standalone_mode=False) or 0)
    except click.exceptions.NoArgsIsHelpError as err:
        click.echo(err.format_message(), err=True)
        sys.exit(2)
    except click.UsageError as err:
        command = err.ctx.command_path if err.ctx else "melbo"
        _fail(f"{err.format_message()} (see {command} --help)")
    except (MelboError, click.ClickException) as err:
        _fail(str(err))
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
