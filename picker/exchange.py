"""One ext_proc stream as a state machine: what to wait for, when to decide, what to answer.

The proxy's first message says how it will send the body, and that decides the conversation:

    NONE, STREAMED, or no body    headers                      ► decide ► destination, close
    BUFFERED, BUFFERED_PARTIAL    headers ► carry on; body     ► decide ► destination, close
    FULL_DUPLEX_STREAMED          headers; body…, or trailers  ► decide ► destination, body…, close

    WAITING ──receive──► WAITING (with an answer to write, or none) ──receive──► READY
    READY   ──answers──► DONE

What may be relied upon: `answers` gives every message that is still owed, and the last of them
must travel in the same gRPC batch as the close. Apart, Envoy 1.40 in full-duplex mode delivers a
response chunk twice in 6 to 15 % of streams whose upstream answers at once. After an OK close the
proxy carries on without us, so the response is never seen here.

Protocol: envoy/service/ext_proc/v3/external_processor.proto.
"""

from dataclasses import dataclass, field
from enum import Enum

from picker import reply
from xds.pool import EndpointId
from xds.proto.envoy.extensions.filters.http.ext_proc.v3 import processing_mode_pb2
from xds.proto.envoy.service.ext_proc.v3 import external_processor_pb2 as ext_proc

Mode = processing_mode_pb2.ProcessingMode
BUFFERED = (Mode.BUFFERED, Mode.BUFFERED_PARTIAL)
SUBSET_NAMESPACE = "envoy.lb.subset_hint"
SUBSET = "x-gateway-destination-endpoint-subset"


class ProtocolError(ValueError):
    """The proxy sent what may not come here."""


class Phase(Enum):
    WAITING = "waiting"
    READY = "ready"
    DONE = "done"


@dataclass(slots=True)
class Exchange:
    """Owned by one stream. `digests`: the control plane says that its filter ran before us."""

    digests: bool = False
    phase: Phase = Phase.WAITING
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | None = None  # None: decide from the headers
    subset: tuple[str, ...] | None = None
    _mode: int = Mode.NONE
    _chunks: list[bytes] = field(default_factory=list)
    _asked: str = ""  # the first message has come
    _ended: bool = False  # the body's own end was seen
    _trailers: bool = False

    def receive(self, raw: bytes) -> bytes | None:
        """Take the proxy's next message; returns what to write at once, if anything."""
        message = ext_proc.ProcessingRequest.FromString(raw)
        kind = message.WhichOneof("request")
        if message.HasField("metadata_context"):
            self._read_subset(message)
        match kind:
            case "request_headers" if not self._asked:
                self._asked = kind
                return self._on_headers(message)
            case "request_body" if self._asked:
                self._on_body(message.request_body)
            case "request_trailers" if self._asked:
                self._trailers = True
                self._ready()
            case _:
                raise ProtocolError(f"{kind or 'an empty message'} cannot come here")
        return None

    def answers(self, endpoint: EndpointId | None) -> list[bytes]:
        """What is owed once decided; None passes the request on without a destination."""
        self.phase = Phase.DONE
        if self.body is None or self._mode not in (*BUFFERED, Mode.FULL_DUPLEX_STREAMED):
            return [reply.on_headers(endpoint) if endpoint else reply.carry_on()]
        if self._mode in BUFFERED:
            return [reply.on_body(endpoint) if endpoint else reply.carry_on(body=True)]
        first = reply.on_headers(endpoint, clear_route_cache=True) if endpoint else reply.carry_on()
        back = list(reply.body_back(self.body, end_of_stream=self._ended))
        return [first, *back, *([reply.trailers_back()] if self._trailers else [])]

    def _on_headers(self, message: ext_proc.ProcessingRequest) -> bytes | None:
        for header in message.request_headers.headers.headers:
            value = header.raw_value.decode("utf-8", "replace") or header.value
            self.headers[header.key] = value
        if message.HasField("protocol_config"):
            self._mode = message.protocol_config.request_body_mode
        elif not self.digests:
            self._mode = Mode.FULL_DUPLEX_STREAMED  # of those that do not say, all expect this
        if message.request_headers.end_of_stream or self._mode in (Mode.NONE, Mode.STREAMED):
            self.phase = Phase.READY
        elif self._mode in BUFFERED:
            return reply.carry_on()
        return None

    def _on_body(self, part: ext_proc.HttpBody) -> None:
        self._chunks.append(part.body)
        if part.end_of_stream:
            self._ended = True
        if part.end_of_stream or self._mode in BUFFERED:
            self._ready()

    def _ready(self) -> None:
        self.body = b"".join(self._chunks)
        self._chunks.clear()
        self.phase = Phase.READY

    def _read_subset(self, message: ext_proc.ProcessingRequest) -> None:
        hints = message.metadata_context.filter_metadata
        if SUBSET_NAMESPACE not in hints:
            return
        fields = hints[SUBSET_NAMESPACE].fields
        if SUBSET in fields:
            items = fields[SUBSET].list_value.values
            self.subset = tuple(item.string_value for item in items)
