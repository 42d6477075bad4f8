"""JSON from an HTTP interface of a running part, for commands that look at it."""

import json
import sys
import urllib.error
import urllib.request
from typing import Any

import click


def fetch(address: str, path: str, *, what: str, option: str) -> Any:
    """What http://`address`/`path` answers; ends the command with status 2 if it does not."""
    try:
        with urllib.request.urlopen(f"http://{address}/{path}", timeout=10) as response:
            return json.load(response)
    except (TimeoutError, ValueError, OSError) as error:
        reason = getattr(error, "reason", error)
        click.echo(f"Error: no {what} at {address}: {reason}; say where with {option}", err=True)
        sys.exit(2)
