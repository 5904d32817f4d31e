"""Help and version."""

import re

import click
import pytest
from command_line import real

import melbo as package
from melbo import cli
from melbo.cli.sections import SECTIONS


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


@pytest.mark.parametrize("name", ["fit", "rank", "sample", "audit"])
def test_options_are_under_headings(melbo, name):
    out = melbo(name, "--help").out
    headings = re.findall(r"^(\w.*):$", out, re.MULTILINE)
    assert headings == [title for title in (*SECTIONS, "Other") if title in headings]
    assert len(headings) >= 5
    told = out.partition(f"{headings[-1]}:")[2]
    assert re.findall(r"^  --?([a-z-]+)", told, re.MULTILINE) == ["seed", "h"]


def test_every_option_of_a_heading_is_one_of_a_command(melbo):
    groups = [cli.cli.get_command(click.Context(cli.cli), name) for name in cli.COMMANDS]
    commands = [
        command
        for group in groups
        for command in (group.commands.values() if isinstance(group, click.Group) else [group])
    ]
    there = {name for command in commands for param in command.params for name in param.opts}
    assert {name for some in SECTIONS.values() for name in some} <= there


def test_version(melbo):
    ended = melbo("--version")
    assert ended.code == 0
    assert ended.out.endswith(f"melbo, version {package.__version__}\n")


def test_without_a_command_it_shows_the_help(melbo):
    ended = melbo()
    assert "error:" not in ended.err
    assert re.search(r"^  fit  ", ended.out + ended.err, re.MULTILINE)
