"""Command lines in documents: whether the command line of this project takes them."""

from __future__ import annotations

import shlex

import typer

from labelmill.pipelines.cli import app


def words_of(line: str) -> list[str]:
    """The words of a shell line, its comment left out."""
    return shlex.split(line, comments=True)


def check_command(line: str) -> list[str]:
    """Parse a line as the shell and `labelmill` would, without running it.

    Returns:
        The names of the command and its subcommand.

    Raises:
        Exception: The command line does not take it: Click's usage errors, which say why.
    """
    program, *words = words_of(line)
    assert program == "labelmill", f"{line!r} must begin with labelmill"
    context = typer.main.get_command(app).make_context("labelmill", words)
    names: list[str] = []
    while hasattr(context.command, "resolve_command"):
        left = [*context._protected_args, *context.args]
        if not left:
            break
        name, command, rest = context.command.resolve_command(context, left)
        names.append(name)
        context = command.make_context(name, rest, parent=context)
    return names


def options_of(names: list[str]) -> set[str]:
    """Every option of a command."""
    command = typer.main.get_command(app)
    for name in names:
        command = command.commands[name]  # type: ignore[attr-defined]
    return {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
