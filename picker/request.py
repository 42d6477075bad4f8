"""What a pick is decided from, out of headers and, where the proxy sends it, the body.

Digests in the headers are trusted only on streams of which the control plane says that its filter
ran (`x-weir-digests`); from anybody else they are a client's claim. Whatever cannot be read leaves
a request without a prefix, or without a model: it is picked on load alone, and the model server,
which knows best, answers it. Nothing here keeps or returns bytes of a prompt.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from picker.body import read
from picker.prefix import NO_PREFIX, Prefix, of_digests, of_text

DIGEST, MODEL = "x-weir-digest", "x-gateway-model-name"
OBJECTIVES = ("x-llm-d-inference-objective", "x-gateway-inference-objective")
BYTES_A_TOKEN = 4.0


@dataclass(frozen=True, slots=True)
class Request:
    """A request to pick for. `prompt_bytes` is None where nobody has measured the prompt."""

    model: str = ""
    prefix: Prefix = NO_PREFIX
    prompt_bytes: int | None = None
    objective: str = ""

    @property
    def prompt_tokens(self) -> float | None:
        """An estimate: four bytes of JSON to a token."""
        return None if self.prompt_bytes is None else self.prompt_bytes / BYTES_A_TOKEN


def from_headers(headers: Mapping[str, str], *, trusted: bool) -> Request:
    """From headers alone; `trusted` if the digest filter ran."""
    objective = _objective(headers)
    if not trusted:
        return Request(prompt_bytes=_length(headers), objective=objective)
    model = headers.get(MODEL, "")
    measured = _measured(headers.get(DIGEST, ""))
    if measured is None:
        return Request(model, prompt_bytes=_length(headers), objective=objective)
    prompt_bytes, digests = measured
    return Request(model, of_digests(model, digests, prompt_bytes), prompt_bytes, objective)


def from_body(headers: Mapping[str, str], body: bytes) -> Request:
    """From a body, which may be cut off at the end or not be JSON at all."""
    model, prompt = read(body)
    objective = _objective(headers)
    if prompt is None:
        return Request(model, prompt_bytes=len(body), objective=objective)
    cut_off = max(0, (_length(headers) or 0) - len(body))
    return Request(model, of_text(model, prompt), len(prompt) + cut_off, objective)


def _measured(text: str) -> tuple[int, list[str]] | None:
    """Of "v1;<body bytes>;<prompt bytes>;<digest>.<digest>…": prompt bytes and digests."""
    version, _, rest = text.partition(";")
    fields = rest.split(";")
    if version != "v1" or len(fields) != 3 or not fields[1].isdecimal():
        return None
    return int(fields[1]), fields[2].split(".")


def _length(headers: Mapping[str, str]) -> int | None:
    text = headers.get("content-length", "")
    return int(text) if text.isdecimal() else None


def _objective(headers: Mapping[str, str]) -> str:
    return next((headers[name] for name in OBJECTIVES if name in headers), "")
