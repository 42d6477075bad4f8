import socket

import pytest

from weir import ports


def test_a_port_is_given_once_and_is_none_that_the_kernel_gives_to_connections():
    given = [ports.free() for _ in range(300)]
    assert len(set(given)) == 300
    assert set(given) <= set(ports.PORTS)


def test_a_port_that_is_taken_at_any_address_is_not_given(monkeypatch):
    with socket.create_server(("127.0.0.1", ports.free())) as taken:
        only = taken.getsockname()[1]
        monkeypatch.setattr(ports, "PORTS", range(only, only + 1))
        monkeypatch.setattr(ports, "_given", set())
        with pytest.raises(OSError, match="no port is free on all of"):
            ports.common(["127.0.0.2", "127.0.0.1"])
        assert ports.free("127.0.0.2") == only
