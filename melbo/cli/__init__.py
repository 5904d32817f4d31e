"""The command line, a thin shell: a file for finding features, using them, measuring; one for what all of these read, one for what they print."""

import sys

import click
import torch

from ..errors import MelboError
from .find import calibrate, compare, contrast, demo, fit
from .measure import bench, experiment
from .show import say
from .use import ablate, chat, export, rank, report, sample, select, watch


class _Commands(click.Group):
    """Lists the commands in the order in which one uses them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of the commands."""
        return list(self.commands)


def main() -> None:
    """Entry point: bad input is one line on standard error and exit code 2, never a traceback."""
    try:
        sys.exit(cli(standalone_mode=False) or 0)
    except click.exceptions.NoArgsIsHelpError as err:
        say(err.format_message())
        sys.exit(2)
    except click.UsageError as err:
        command = err.ctx.command_path if err.ctx else "melbo"
        _fail(f"{err.format_message()} (see {command} --help)")
    except (MelboError, click.ClickException) as err:
        _fail(str(err))
    except torch.OutOfMemoryError as err:
        _fail(f"out of memory ({str(err).splitlines()[0]}): use fewer or shorter prompts, a smaller dtype, or another device")
    except (KeyboardInterrupt, click.Abort):
        say("interrupted")
        sys.exit(130)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.version_option(package_name="melbo")
def cli() -> None:
    """Find hidden behaviours of language models without labels."""


def _fail(message: str) -> None:
    say("error: " + " ".join(message.split()))
    sys.exit(2)


for command in (demo, fit, calibrate, rank, select, sample, chat, ablate, watch, contrast, compare, report, export, bench, experiment):
    cli.add_command(command)
