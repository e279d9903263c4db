"""What the README tells a user to type is understood by the command line and by Python."""

from __future__ import annotations

import ast
import re
import shlex
import tomllib
from pathlib import Path

import pytest
import typer

import rrmsdk
from rrmsdk.cli import app
from rrmsdk.schema import value
from rrmsdk.schema.job import Job
from rrmsdk.schema.recipe import Recipe

README = (Path(__file__).parents[1] / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, flags=re.S)
COMMANDS = [
    line
    for kind, block in BLOCKS
    if kind == "sh"
    for line in block.replace("\\\n", " ").splitlines()
    if line.startswith("rrmsdk ")
]


@pytest.mark.parametrize("line", COMMANDS)
def test_the_command_line_knows_each_command_of_the_readme(line):
    _, verb, *arguments = shlex.split(line, comments=True)
    command = typer.main.get_command(app).commands[verb]
    command.make_context(verb, arguments)


def test_the_readme_shows_commands_at_all():
    assert len(COMMANDS) >= 6


@pytest.mark.parametrize("block", [block for kind, block in BLOCKS if kind == "python"])
def test_python_in_the_readme_uses_names_that_exist(block):
    for node in ast.walk(ast.parse(block)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "rrmsdk":
            assert hasattr(rrmsdk, node.attr)


@pytest.mark.parametrize("block", [block for kind, block in BLOCKS if kind == "toml"])
def test_a_recipe_or_job_in_the_readme_reads(block):
    text = re.sub(r'sha256 = "\w+\.\.\."', f'sha256 = "{"0" * 64}"', block)
    value.parse(Job if block.startswith("version") else Recipe, tomllib.loads(text))


def test_each_result_file_the_readme_names_is_there():
    for name in re.findall(r"benchmarks/results/[\w.-]+\.md", README):
        assert (Path(__file__).parents[1] / name).is_file(), name
