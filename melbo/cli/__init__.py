"""The command line, the thinnest shell: each command is imported when it is called."""

import sys
from importlib import import_module

import click

from melbo.errors import MelboError

#: Commands in the order in which one uses them, each with its room and its help in one line.
COMMANDS = {
    "demo": ("find", "Find latent behaviours of the bundled model in a few minutes."),
    "fit": ("find", "Learn features of MODEL from a few prompts."),
    "calibrate": ("find", "Find the scale at which MODEL's response becomes half non-linear."),
    "rank": ("use", "Order the features of RUN by what they do on new prompts."),
    "select": ("use", "Find the feature of RUN with the best score by successive halving."),
    "sample": ("use", "Print what features of RUN make the model say."),
    "chat": ("use", "Talk to the model of RUN while a feature steers it."),
    "ablate": ("use", "Take features of RUN out of every matrix that writes to the stream."),
    "watch": ("use", "Say on which prompts which feature of RUN fires unprompted."),
    "contrast": ("find", "Make what steers MODEL from prompts that differ in a behaviour."),
    "compare": ("find", "Compare ways to find features of MODEL, with controls."),
    "report": ("use", "Write RUN/report.html: settings, curves, features with their replies."),
    "export": ("use", "Write adapters of RUN as LoRAs that peft loads."),
}


class _Commands(click.Group):
    """Commands that are imported when they are called: the list of them needs no torch."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of the commands."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """A command; with ``--help``, and for suggestions, see `format_commands`."""
        if name not in COMMANDS:
            return None
        command = getattr(import_module(f"melbo.cli.{COMMANDS[name][0]}"), name)
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
    """Run a command line: bad input is one line on standard error and exit code 2."""
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
        if type(err).__name__ != "OutOfMemoryError":  # torch's, which is not imported for this
            raise
        _fail(
            f"out of memory ({str(err).splitlines()[0]}): "
            "use fewer or shorter prompts, a smaller dtype, or another device"
        )


def _fail(message: str) -> None:
    click.echo("error: " + " ".join(message.split()), err=True)
    sys.exit(2)
