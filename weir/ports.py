"""Free ports on loopback, below those that the kernel gives to outgoing connections.

A port is asked for before its owner binds it. One of the kernel's choosing could be gone by then:
to another such question, or to any connection that leaves this machine meanwhile.
"""

import random
import socket
from collections.abc import Sequence
from contextlib import ExitStack

PORTS = range(10_000, 32_000)  # Linux gives outgoing connections 32768 and up
_given: set[int] = set()


def free(address: str = "127.0.0.1") -> int:
    """A TCP port that nobody listens on at `address`, and that was not given before."""
    return common([address])


def common(addresses: Sequence[str], attempts: int = 200) -> int:
    """One such port that is free on every one of `addresses`."""
    for _ in range(attempts):
        port = random.choice(PORTS)
        if port in _given:
            continue
        with ExitStack() as held:
            try:
                for address in addresses:
                    probe = held.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
                    probe.bind((address, port))
            except OSError:
                continue
        _given.add(port)
        return port
    raise OSError(f"no port is free on all of {', '.join(addresses)} after {attempts} attempts")
