"""Help and version."""

import re

import click
import pytest
from command_line import real

import melbo as package
from melbo import cli


def test_help_of_the_console_script():
    ended = real("--help")
    assert (ended.code, ended.err) == (0, "")
    for name in cli.COMMANDS:
        assert re.search(rf"^  {name}  ", ended.out, re.MULTILINE)


@pytest.mark.parametrize("name", list(cli.COMMANDS))
def test_help_of_every_command_says_all_options(melbo, name):
    ended = melbo(name, "--help")
    assert (ended.code, ended.err) == (0, "")
    for param in cli.cli.get_command(click.Context(cli.cli), name).params:
        if param.param_type_name == "argument":
            assert param.human_readable_name in ended.out
        else:
            assert all(option in ended.out for option in param.opts)
            assert param.help, f"{param.name} says nothing about itself"


def test_version(melbo):
    ended = melbo("--version")
    assert ended.code == 0
    assert ended.out.endswith(f"melbo, version {package.__version__}\n")


def test_without_a_command_it_shows_the_help(melbo):
    ended = melbo()
    assert "error:" not in ended.err
    assert re.search(r"^  fit  ", ended.out + ended.err, re.MULTILINE)
