import contextlib

import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import (
    DataReceived,
    PingReceived,
    RequestReceived,
    SettingsAcknowledged,
    StreamEnded,
    StreamReset,
)
from h2.settings import SettingCodes, Settings
from hypothesis import given
from hypothesis import strategies as st

from xds.hbone_tunnel import (
    ANSWER_BYTES,
    CONNECTION_WINDOW,
    WINDOW,
    Closed,
    Data,
    Declined,
    Lost,
    Opened,
    Ready,
    TunnelError,
    Tunnels,
)

POD = "10.0.0.7:8000"


class FarEnd:
    """The server's side of HTTP/2, in memory."""

    def __init__(self, **settings):
        self.h2 = H2Connection(H2Configuration(client_side=False, header_encoding="utf-8"))
        values = {SettingCodes[name.upper()]: value for name, value in settings.items()}
        self.h2.local_settings = Settings(client=False, initial_values=values)
        self.h2.initiate_connection()
        self.tunnels = Tunnels()
        self.seen = []  # what our side has told it

    def pump(self):
        """Both sides' bytes to the other until there are none; what our side makes of them."""
        events = []
        while (ours := self.tunnels.output()) or (theirs := self.h2.data_to_send()):
            if ours:
                self.seen += self.h2.receive_data(ours)
            else:
                events += self.tunnels.receive(theirs)
        return events

    def heard(self, kind):
        return [event for event in self.seen if isinstance(event, kind)]

    def answer(self, stream, status, *, end=False):
        self.h2.send_headers(stream, [(":status", str(status))], end_stream=end)


def far_end(**settings):
    far = FarEnd(**settings)
    assert far.pump() == [Ready()]
    return far


def opened(**settings):
    far = far_end(**settings)
    stream = far.tunnels.open(POD)
    far.pump()
    far.answer(stream, 200)
    assert far.pump() == [Opened(stream)]
    return far, stream


def test_a_tunnel_is_asked_for_by_authority_alone():
    far = far_end()
    stream = far.tunnels.open(POD)
    assert far.pump() == []
    (request,) = far.heard(RequestReceived)
    assert dict(request.headers) == {":method": "CONNECT", ":authority": POD}
    assert (request.stream_id, request.stream_ended) == (stream, None)


def test_bytes_go_both_ways_once_it_is_open():
    far, stream = opened()
    far.tunnels.send(stream, b"GET")
    far.pump()
    assert [event.data for event in far.heard(DataReceived)] == [b"GET"]
    far.h2.send_data(stream, b"page")
    assert far.pump() == [Data(stream, b"page")]


def test_two_tunnels_do_not_mix():
    far = far_end()
    one, two = far.tunnels.open(POD), far.tunnels.open("10.0.0.7:8001")
    far.pump()
    far.answer(two, 200)
    far.answer(one, 503, end=True)
    far.h2.send_data(two, b"page")
    assert far.pump() == [Opened(two), Declined(one, 503, ""), Data(two, b"page")]
    assert len(far.tunnels) == 1


def test_more_pages_than_any_window_come_through():
    far, stream = opened()
    page, got = bytes(16_384), 0
    for _ in range(2 * CONNECTION_WINDOW // len(page)):
        far.h2.send_data(stream, page)  # raises where a window was not opened again
        got += sum(len(event.data) for event in far.pump())
    assert got == 2 * CONNECTION_WINDOW
    assert far.h2.local_flow_control_window(stream) >= WINDOW // 2


def test_what_the_far_ends_window_holds_back_follows_when_it_opens():
    far, stream = opened(initial_window_size=10)
    far.tunnels.send(stream, b"0123456789abcdef")
    far.tunnels.send(stream, b"ghi")
    far.pump()
    assert b"".join(event.data for event in far.heard(DataReceived)) == b"0123456789"
    far.h2.increment_flow_control_window(4, stream)
    far.pump()
    assert b"".join(event.data for event in far.heard(DataReceived)) == b"0123456789abcd"
    far.h2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 100})
    far.pump()
    assert b"".join(event.data for event in far.heard(DataReceived)) == b"0123456789abcdefghi"


@pytest.mark.parametrize("status", [400, 401, 403, 503])
def test_a_refusal_says_why(status):
    far = far_end()
    stream = far.tunnels.open(POD)
    far.pump()
    far.answer(stream, status)
    far.h2.send_data(stream, b"RBAC: access denied" + bytes(9000), end_stream=True)
    (event,) = far.pump()
    assert (event.stream, event.status) == (stream, status)
    assert event.text.startswith("RBAC: access denied")
    assert len(event.text) == ANSWER_BYTES
    assert len(far.tunnels) == 0


def test_a_reset_instead_of_an_answer_is_told():
    far = far_end()
    stream = far.tunnels.open(POD)
    far.pump()
    far.h2.reset_stream(stream, ErrorCodes.REFUSED_STREAM)
    assert far.pump() == [Closed(stream, "reset by the far end: REFUSED_STREAM")]


def test_a_server_that_hangs_up_ends_the_tunnel_on_both_sides():
    far, stream = opened()
    far.h2.send_data(stream, b"bye", end_stream=True)
    assert far.pump() == [Data(stream, b"bye"), Closed(stream)]
    assert len(far.heard(StreamEnded)) == 1
    far.tunnels.send(stream, b"too late")
    far.tunnels.close(stream)
    assert far.pump() == []


def test_a_tunnel_that_breaks_is_not_one_that_ends():
    far, stream = opened()
    far.h2.reset_stream(stream, ErrorCodes.INTERNAL_ERROR)
    assert far.pump() == [Closed(stream, "reset by the far end: INTERNAL_ERROR")]


def test_what_still_comes_through_a_tunnel_that_was_given_up_is_dropped_and_harms_no_other():
    far, stream = opened()
    far.tunnels.close(stream)
    for _ in range(3):
        far.h2.send_data(stream, bytes(16_384))
    assert far.pump() == []
    assert far.heard(StreamReset)[0].error_code is ErrorCodes.CANCEL
    other = far.tunnels.open(POD)
    far.pump()
    far.answer(other, 200)
    assert far.pump() == [Opened(other)]


def test_a_far_end_that_goes_away_takes_all_tunnels_along():
    far, stream = opened()
    far.h2.send_data(stream, b"last")
    far.h2.close_connection()
    assert far.pump() == [Data(stream, b"last"), Lost("the far end says goodbye: NO_ERROR")]
    assert len(far.tunnels) == 0
    with pytest.raises(TunnelError, match="closed"):
        far.tunnels.open(POD)
    far.tunnels.send(stream, b"x")
    far.tunnels.close(stream)
    far.tunnels.ping()
    far.tunnels.leave()
    assert far.tunnels.output() == b""


def test_no_more_tunnels_than_the_far_end_allows():
    far = far_end(max_concurrent_streams=1)
    far.tunnels.open(POD)
    with pytest.raises(TunnelError, match="1"):
        far.tunnels.open(POD)


def test_a_ping_is_answered():
    far = far_end()
    far.tunnels.ping()
    far.pump()
    assert len(far.heard(PingReceived)) == 1


def test_our_settings_are_accepted():
    far = FarEnd()
    far.pump()
    assert far.h2.remote_settings.enable_push == 0
    assert far.h2.remote_settings.initial_window_size == WINDOW
    assert far.heard(SettingsAcknowledged)


@given(st.binary(max_size=200), st.integers(0, 3))
def test_no_bytes_do_harm(noise, when):
    far = FarEnd()
    if when >= 1:
        far.pump()
    stream = far.tunnels.open(POD)
    if when >= 2:
        far.pump()
        far.answer(stream, 200)
    if when == 3:
        far.pump()
    events = far.tunnels.receive(far.h2.data_to_send() + noise)
    if any(isinstance(event, Lost) for event in events):
        with contextlib.suppress(TunnelError):
            far.tunnels.open(POD)
            raise AssertionError("a lost connection takes no more")
    far.tunnels.close(stream)
    far.tunnels.output()
