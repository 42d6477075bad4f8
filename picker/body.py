"""The two things of an OpenAI body that routing needs: the model, and the prompt as it is spelled.

A whole body is decoded by msgspec, which skips what is not asked for and leaves the prompt as raw
JSON. A body that was cut off (`BUFFERED_PARTIAL`) is no JSON: its top level is then read token by
token, as far as it goes.
"""

import re
from collections.abc import Iterator

import msgspec
from msgspec import Raw, Struct

PROMPTS = ("prompt", "messages", "input")  # the first that is there counts
OPENING = (b'"', b"[", b"{")


class _Body(Struct):
    model: str = ""
    prompt: Raw | None = None
    messages: Raw | None = None
    input: Raw | None = None


_decoder = msgspec.json.Decoder(_Body)
_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|[{}\[\]:,]|"', re.DOTALL)


def read(body: bytes) -> tuple[str, bytes | None]:
    """Model ("" if there is none) and the prompt's raw JSON, None where there is none."""
    try:
        decoded = _decoder.decode(body)
    except msgspec.MsgspecError:
        return scan(body)
    values = (bytes(raw) for raw in (decoded.prompt, decoded.messages, decoded.input) if raw)
    return decoded.model, next((value for value in values if value[:1] in OPENING), None)


def scan(body: bytes) -> tuple[str, bytes | None]:
    """The same from a body that is not whole; a prompt that is cut off goes to the end."""
    model = ""
    prompts: dict[str, bytes] = {}
    for key, start, end in _members(body):
        value = body[start:end].strip()
        if key == "model":
            model = _text(value)
        elif key in PROMPTS and value[:1] in OPENING:
            prompts[key] = value
    return model, next((prompts[key] for key in PROMPTS if key in prompts), None)


def _members(body: bytes) -> Iterator[tuple[str, int, int]]:
    """Key, and where the value begins and ends, of the top-level object's members."""
    depth, key, start = 0, b"", None
    for match in _TOKEN.finditer(body):
        token = match[0]
        if token in b"{[":
            depth += 1
        elif depth == 1 and token in b",}" and start is not None:
            yield _text(key), start, match.start()
            start = None
        elif depth == 1 and token == b":" and start is None:
            start = match.end()
        elif depth == 1 and start is None:
            key = token
        if token in b"}]":
            depth -= 1
    if start is not None:
        yield _text(key), start, len(body)


def _text(token: bytes) -> str:
    try:
        text: str = msgspec.json.decode(token, type=str)
    except msgspec.MsgspecError:
        return ""
    return text
