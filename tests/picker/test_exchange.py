"""ext_proc conversations, as transcripts: ">" the proxy says, "<" the picker answers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from picker.exchange import Exchange, Phase, ProtocolError
from xds.proto.envoy.extensions.filters.http.ext_proc.v3 import processing_mode_pb2
from xds.proto.envoy.service.ext_proc.v3 import external_processor_pb2 as ext_proc

Mode = processing_mode_pb2.ProcessingMode
HINT, KEY = "envoy.lb.subset_hint", "x-gateway-destination-endpoint-subset"
MODES = {
    "none": Mode.NONE,
    "streamed": Mode.STREAMED,
    "buffered": Mode.BUFFERED,
    "buffered-partial": Mode.BUFFERED_PARTIAL,
    "full-duplex": Mode.FULL_DUPLEX_STREAMED,
}


def headers(mode=None, *, end=False, **pairs):
    message = ext_proc.ProcessingRequest()
    message.request_headers.end_of_stream = end
    message.request_headers.headers.SetInParent()
    for key, value in pairs.items():
        header = message.request_headers.headers.headers.add(key=key.replace("_", "-"))
        header.raw_value = value.encode()
    if mode:
        message.protocol_config.request_body_mode = MODES[mode]
    return message


def body(data, *, end=False):
    message = ext_proc.ProcessingRequest()
    message.request_body.body, message.request_body.end_of_stream = data, end
    return message


def trailers():
    message = ext_proc.ProcessingRequest()
    message.request_trailers.SetInParent()
    return message


def said(raw):
    """An answer in a few words."""
    message = ext_proc.ProcessingResponse.FromString(raw)
    kind = message.WhichOneof("response")
    common = {
        "request_headers": message.request_headers.response,
        "request_body": message.request_body.response,
    }.get(kind)
    words = [kind]
    if common is not None:
        words += [
            f"{h.header.key}={h.header.raw_value.decode()}"
            for h in common.header_mutation.set_headers
        ]
        if common.body_mutation.HasField("streamed_response"):
            part = common.body_mutation.streamed_response
            words.append(f"body={part.body.decode()}" + (" end" if part.end_of_stream else ""))
    if "envoy.lb" in message.dynamic_metadata:
        words.append(f"lb={message.dynamic_metadata['envoy.lb']['x-gateway-destination-endpoint']}")
    return " ".join(words)


def converse(*messages, endpoint="e:1", digests=False):
    """Say the messages one after the other; what was answered before and after the decision."""
    exchange, early = Exchange(digests), []
    for message in messages:
        assert exchange.phase is Phase.WAITING
        answer = exchange.receive(message.SerializeToString())
        early += [said(answer)] if answer is not None else []
    if exchange.phase is Phase.WAITING:
        return early, None, exchange
    return early, [said(each) for each in exchange.answers(endpoint)], exchange


PICK = "request_headers x-gateway-destination-endpoint=e:1 lb=e:1"
BODY_PICK = "request_body x-gateway-destination-endpoint=e:1 lb=e:1"


@pytest.mark.parametrize("mode", ["none", "streamed"])
def test_headers_alone_are_answered_at_once(mode):
    assert converse(headers(mode))[:2] == ([], [PICK])


@pytest.mark.parametrize("mode", MODES)
def test_a_request_without_a_body_is_answered_at_once_in_every_mode(mode):
    assert converse(headers(mode, end=True))[:2] == ([], [PICK])


@pytest.mark.parametrize("mode", ["buffered", "buffered-partial"])
def test_a_buffered_body_is_waited_for_and_not_touched(mode):
    early, answers, exchange = converse(headers(mode), body(b"{}", end=True))
    assert (early, answers) == (["request_headers"], [BODY_PICK])
    assert exchange.body == b"{}"


def test_a_partial_body_is_decided_on_although_it_does_not_end():
    _, answers, exchange = converse(headers("buffered-partial"), body(b"{", end=False))
    assert answers == [BODY_PICK]
    assert exchange.body == b"{"


def test_in_full_duplex_the_body_is_given_back_and_the_last_chunk_ends_it():
    early, answers, _ = converse(
        headers("full-duplex"), body(b"a"), body(b"b"), body(b"", end=True)
    )
    assert (early, answers) == ([], [PICK, "request_body body=ab end"])


def test_trailers_end_a_body_too_and_are_given_back():
    _, answers, _ = converse(headers("full-duplex"), body(b"a"), trailers())
    assert answers == [PICK, "request_body body=a", "request_trailers"]


def test_a_proxy_that_does_not_say_how_it_sends_the_body_is_taken_for_full_duplex():
    assert converse(headers())[1] is None
    assert converse(headers(), body(b"a", end=True))[1] == [PICK, "request_body body=a end"]


def test_digests_make_the_body_unnecessary():
    assert converse(headers(), digests=True)[1] == [PICK]


@pytest.mark.parametrize(
    ("messages", "answers"),
    [
        ((headers("none"),), ["request_headers"]),
        ((headers("buffered"), body(b"x", end=True)), ["request_body"]),
        (
            (headers("full-duplex"), body(b"x", end=True)),
            ["request_headers", "request_body body=x end"],
        ),
    ],
)
def test_without_a_destination_the_request_goes_on_with_its_body(messages, answers):
    assert converse(*messages, endpoint=None)[1] == answers


@pytest.mark.parametrize("messages", [(body(b"x"),), (trailers(),), (headers(), headers())])
def test_what_cannot_come_here_is_refused(messages):
    exchange = Exchange()
    *before, last = messages
    for message in before:
        exchange.receive(message.SerializeToString())
    with pytest.raises(ProtocolError):
        exchange.receive(last.SerializeToString())


def test_values_come_raw_or_as_text():
    message = headers("none", x_model="a")
    message.request_headers.headers.headers.add(key="x-old", value="b")
    assert converse(message)[2].headers == {"x-model": "a", "x-old": "b"}


def test_the_subset_is_read_from_the_message_that_carries_it():
    last = body(b"", end=True)
    assert converse(headers("full-duplex"), last)[2].subset is None
    last.metadata_context.filter_metadata[HINT].update({KEY: ["10.0.0.1:80"]})
    assert converse(headers("full-duplex"), last)[2].subset == ("10.0.0.1:80",)


@given(st.lists(st.binary(max_size=90_000), min_size=1, max_size=4))
def test_in_full_duplex_every_byte_comes_back_in_chunks_that_pass(chunks):
    exchange = Exchange()
    exchange.receive(headers("full-duplex").SerializeToString())
    for number, chunk in enumerate(chunks, 1):
        exchange.receive(body(chunk, end=number == len(chunks)).SerializeToString())
    _, *parts = map(ext_proc.ProcessingResponse.FromString, exchange.answers("e:1"))
    streamed = [part.request_body.response.body_mutation.streamed_response for part in parts]
    assert b"".join(part.body for part in streamed) == b"".join(chunks)
    assert all(len(part.body) <= 62_000 for part in streamed)
    assert [part.end_of_stream for part in streamed] == [False] * (len(parts) - 1) + [True]
