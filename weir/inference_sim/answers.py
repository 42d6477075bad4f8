"""The bytes of an answer, whole or as server-sent events, in vLLM's words.

Given id, model and instant, an answer's bytes follow from its text, and the cut of a stream from
`stream_interval`: a benchmark can say beforehand what a client must receive (`transcript`).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import msgspec

from weir.inference_sim.call import Kind
from weir.inference_sim.tokens import TOKEN_BYTES

DONE = b"data: [DONE]\n\n"

_encode = msgspec.json.encode


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens; `cached` of the prompt's were found in the cache."""

    prompt: int
    completion: int
    cached: int

    def fields(self) -> dict[str, object]:
        return {
            "prompt_tokens": self.prompt,
            "total_tokens": self.prompt + self.completion,
            "completion_tokens": self.completion,
            "prompt_tokens_details": {"cached_tokens": self.cached},
        }


class Answer:
    """One answer's envelope, and its events. `created` is Unix time in seconds."""

    __slots__ = ("_chunk", "_envelope", "_kind", "_model", "_opening", "_usage")

    def __init__(self, kind: Kind, answer_id: str, created: int, model: str) -> None:
        chat = kind is Kind.CHAT
        self._kind = kind
        self._model = model
        shared = f'{{"id":{_text(answer_id)},"object":'
        rest = f',"created":{created},"model":{_text(model)},"choices":['
        streamed = '"chat.completion.chunk"' if chat else '"text_completion"'
        self._envelope = shared + ('"chat.completion"' if chat else '"text_completion"') + rest
        self._usage = f"data: {shared}{streamed}{rest}"
        self._opening = b""
        if chat:
            opening = '{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,'
            self._opening = f'{self._usage}{opening}"finish_reason":null}}]}}\n\n'.encode()
        self._chunk = self._usage + (
            '{"index":0,"delta":{"content":"' if chat else '{"index":0,"text":"'
        )

    def opening(self) -> bytes:
        """What goes before the first token: a chat names its role, a completion nothing."""
        return self._opening

    def chunk(self, text: str, *, last: bool) -> bytes:
        """One event. The text must need no escapes; `tokens.answer` gives such."""
        reason = '"length"' if last else "null"
        if self._kind is Kind.CHAT:
            tail = f'"}},"logprobs":null,"finish_reason":{reason}}}]}}\n\n'
        else:
            tail = f'","logprobs":null,"finish_reason":{reason},"stop_reason":null}}]}}\n\n'
        return (self._chunk + text + tail).encode()

    def usage(self, usage: Usage) -> bytes:
        """The event that `stream_options.include_usage` asks for: no choice, the usage."""
        return f'{self._usage}],"usage":'.encode() + _encode(usage.fields()) + b"}\n\n"

    def whole(self, text: str, usage: Usage) -> bytes:
        """The body of an answer that is not streamed."""
        end = '"logprobs":null,"finish_reason":"length","stop_reason":null}],"usage":'
        if self._kind is Kind.CHAT:
            choice = f'{{"index":0,"message":{{"role":"assistant","content":"{text}"}},'
        else:
            choice = f'{{"index":0,"text":"{text}",'
        return (self._envelope + choice + end).encode() + _encode(usage.fields()) + b"}"


def cuts(tokens: int, interval: int) -> Iterator[int]:
    """After how many tokens each event ends: the first token at once, then `interval` each."""
    yield from range(1, tokens, interval)
    yield tokens


def transcript(answer: Answer, text: str, interval: int, usage: Usage | None = None) -> bytes:
    """Every byte of a streamed answer's body."""
    tokens = len(text) // TOKEN_BYTES
    events, begin = [answer.opening()], 0
    for cut in cuts(tokens, interval):
        end = cut * TOKEN_BYTES
        events.append(answer.chunk(text[begin:end], last=cut == tokens))
        begin = end
    if usage is not None:
        events.append(answer.usage(usage))
    events.append(DONE)
    return b"".join(events)


def error(code: int, kind: str, message: str, param: str | None = None) -> bytes:
    """The body of a refusal; `kind` is vLLM's word for it."""
    return _encode({"error": {"message": message, "type": kind, "param": param, "code": code}})


def _text(value: str) -> str:
    return _encode(value).decode()
