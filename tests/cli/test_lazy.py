"""Listing commands waits for nothing: what they need is imported when one of them is called."""

import subprocess
import sys

import click
import pytest

from melbo import cli

HEAVY = ("torch", "transformers", "matplotlib", "sklearn", "scipy")
RUN = """
import sys
sys.argv = ["melbo", "OPTION"]
from melbo.cli import main
try:
    main()
except SystemExit:
    pass
"""


def imported(code):
    """Packages of `HEAVY` that are there after some code."""
    told = f"{code}\nimport sys; print('|', *(n for n in {HEAVY} if n in sys.modules))"
    done = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True)
    return done.stdout.rpartition("|")[2].split()


@pytest.mark.parametrize("code", ["import melbo", "import melbo.cli", "from melbo import cli"])
def test_importing_the_package_or_its_command_line_imports_nothing_heavy(code):
    assert imported(code) == []


@pytest.mark.parametrize("option", ["--help", "--version", "--nonsense"])
def test_the_list_of_commands_needs_nothing_heavy(option):
    assert imported(RUN.replace("OPTION", option)) == []


def test_the_check_sees_what_is_heavy():
    assert imported("import scipy") == ["scipy"]


@pytest.mark.parametrize("name", list(cli.COMMANDS))
def test_a_listed_command_is_there_with_the_help_that_the_list_shows(name):
    command = cli.cli.get_command(click.Context(cli.cli), name)
    assert command.name == name
    assert command.help.splitlines()[0] == cli.first_line(name) != ""


def test_no_command_is_left_out_of_the_list():
    context = click.Context(cli.cli)
    modules = set(cli.COMMANDS.values())
    for name in cli.COMMANDS:
        cli.cli.get_command(context, name)
    defined = {
        value
        for module in modules
        for value in vars(sys.modules[f"melbo.cli.{module}"]).values()
        if isinstance(value, click.Command)
    }
    # commands of a group are listed by the group
    groups = [command for command in defined if isinstance(command, click.Group)]
    inner = {command for group in groups for command in group.commands.values()}
    assert {command.name for command in defined - inner} == set(cli.COMMANDS)
