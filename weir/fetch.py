"""JSON from an HTTP interface of a running part, for commands that look at it."""

import json
import sys
import urllib.error
import urllib.request
from typing import Any

import click


class NoAnswerError(Exception):
    """Nobody answers there, or not in JSON; says why."""


def ask(address: str, path: str) -> Any:
    """What http://`address`/`path` answers. Raises `NoAnswerError`."""
    try:
        with urllib.request.urlopen(f"http://{address}/{path}", timeout=10) as response:
            return json.load(response)
    except (TimeoutError, ValueError, OSError) as error:
        raise NoAnswerError(str(getattr(error, "reason", error))) from error


def fetch(address: str, path: str, *, what: str, option: str) -> Any:
    """The same; ends the command with status 2 if there is none."""
    try:
        return ask(address, path)
    except NoAnswerError as error:
        click.echo(f"Error: no {what} at {address}: {error}; say where with {option}", err=True)
        sys.exit(2)
