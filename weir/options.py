"""What the options of several commands have in common."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import click

Command: TypeAlias = Callable[..., Any]
Decorator: TypeAlias = Callable[[Command], Command]

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
DIRECTORY = click.Path(exists=True, file_okay=False, path_type=Path)


def with_options(command: Command, options: Sequence[Decorator]) -> Command:
    """The command with these options, in this order in its `--help`."""
    for option in reversed(options):
        command = option(command)
    return command
