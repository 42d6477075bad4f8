"""Free ports on loopback, found by asking the kernel for them."""

import socket
from collections.abc import Sequence
from contextlib import ExitStack


def free(address: str = "127.0.0.1") -> int:
    """A TCP port that nobody listens on at `address` right now."""
    return common([address])


def common(addresses: Sequence[str], attempts: int = 50) -> int:
    """One TCP port that is free on every one of `addresses`."""
    for _ in range(attempts):
        with ExitStack() as held:
            port = 0
            try:
                for address in addresses:
                    probe = held.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
                    probe.bind((address, port))
                    port = probe.getsockname()[1]
            except OSError:
                continue
            return port
    raise OSError(f"no port is free on all of {', '.join(addresses)} after {attempts} attempts")
