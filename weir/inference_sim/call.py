"""What a client asks for over HTTP, read from the body of its request.

Only what decides an answer's length and form is read; sampling parameters are accepted and ignored,
as the answer does not depend on them. `max_tokens` is the answer's length (vLLM's `ignore_eos`).

    BadCall         → 400: what the body says cannot be done
      MalformedCall → 400: the body is not what it should be
"""

from dataclasses import dataclass
from enum import Enum

import msgspec

DEFAULT_MAX_TOKENS = 16


class BadCall(Exception):
    """The request cannot be served; `param` names the field."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class MalformedCall(BadCall):
    """The body is not JSON, or not of the right shape."""


class Kind(Enum):
    """Which of the two APIs; the value begins the ids of its answers."""

    COMPLETION = "cmpl"
    CHAT = "chatcmpl"


@dataclass(frozen=True, slots=True)
class Call:
    """A completion to make."""

    kind: Kind
    model: str | None  # None: the base model, as in vLLM
    prompt: bytes
    max_tokens: int
    stream: bool
    usage: bool  # a stream ends with a chunk of usage


class _StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


class _Body(msgspec.Struct):
    model: str | None = None
    max_tokens: int | None = None
    n: int | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None


class _CompletionBody(_Body):
    prompt: str | list[str | int | list[int]] | None = None


class _Message(msgspec.Struct):
    role: str
    content: str | list[dict[str, object]] | None = None


class _ChatBody(_Body):
    messages: list[_Message] = []
    max_completion_tokens: int | None = None


_COMPLETION = msgspec.json.Decoder(_CompletionBody, strict=False)  # as pydantic: "4" and 4.0 are 4
_CHAT = msgspec.json.Decoder(_ChatBody, strict=False)


def read_completion(body: bytes) -> Call:
    """The body of `/v1/completions`."""
    try:
        read = _COMPLETION.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise MalformedCall(str(error)) from error
    return _call(Kind.COMPLETION, read, _prompt(read.prompt), read.max_tokens)


def read_chat(body: bytes) -> Call:
    """The body of `/v1/chat/completions`."""
    try:
        read = _CHAT.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise MalformedCall(str(error)) from error
    if not read.messages:
        raise BadCall("messages must have at least one message", "messages")
    max_tokens = read.max_completion_tokens
    return _call(
        Kind.CHAT,
        read,
        render(read.messages),
        read.max_tokens if max_tokens is None else max_tokens,
    )


def render(messages: list[_Message]) -> bytes:
    """One text from a conversation; a longer conversation begins with the shorter one's text."""
    parts: list[str] = []
    for message in messages:
        parts.append(f"<|im_start|>{message.role}\n")
        if isinstance(message.content, str):
            parts.append(message.content)
        else:
            parts += [str(part.get("text", part)) for part in message.content or ()]
        parts.append("<|im_end|>\n")
    parts.append("<|im_start|>assistant\n")
    return "".join(parts).encode("utf-8", "surrogatepass")


def _prompt(given: str | list[str | int | list[int]] | None) -> bytes:
    prompt: object = given
    if isinstance(given, list) and len(given) == 1 and not isinstance(given[0], int):
        prompt = given[0]
    if not isinstance(prompt, str | list) or not prompt:
        raise BadCall("either prompt or prompt_embeds must be provided and non-empty", "prompt")
    if isinstance(prompt, str):
        return prompt.encode("utf-8", "surrogatepass")
    numbers = [token for token in prompt if isinstance(token, int)]
    if len(numbers) != len(prompt):
        raise BadCall("a request with several prompts is not simulated: send one each", "prompt")
    if not all(0 <= token < 1 << 32 for token in numbers):
        raise BadCall("token ids must be between 0 and 2^32", "prompt")
    return b"".join(token.to_bytes(4, "big") for token in numbers)


def _call(kind: Kind, read: _Body, prompt: bytes, max_tokens: int | None) -> Call:
    if max_tokens is None:
        max_tokens = DEFAULT_MAX_TOKENS
    if max_tokens < 1:
        raise BadCall(f"max_tokens must be at least 1, got {max_tokens}", "max_tokens")
    if read.n is not None and read.n != 1:
        raise BadCall(f"n must be 1: one choice is simulated, got {read.n}", "n")
    options = read.stream_options
    if options is not None and not read.stream:
        raise BadCall("Stream options can only be defined when `stream=True`.", "stream_options")
    return Call(
        kind=kind,
        model=read.model,
        prompt=prompt,
        max_tokens=max_tokens,
        stream=bool(read.stream),
        usage=options is not None and bool(options.include_usage),
    )
