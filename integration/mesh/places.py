"""Where everything is: a second octet of 127.0.0.0/8 of its own for each mesh.

istiod's data has 127.0.x.y, and ports that Kubernetes objects and EnvoyFilters repeat. Another
octet moves all of it at once and leaves the ports as they are, so that several meshes can run
beside each other. A mesh holds a socket of its octet for as long as it lives; who finds it bound
takes another.
"""

import random
import socket
from contextlib import contextmanager
from dataclasses import dataclass

OCTETS = range(100, 255)  # 96 is where the Services are: nobody listens there
CLAIM = 15_999


@dataclass(frozen=True, slots=True)
class Places:
    """Addresses by what is there; `octet` 0 is istiod's data as it is."""

    octet: int = 0

    def move(self, text):
        """Text that speaks of istiod's 127.0.x.y, with our octet."""
        return text.replace("127.0.", f"127.{self.octet}.")

    def __call__(self, third, fourth):
        return f"127.{self.octet}.{third}.{fourth}"

    @property
    def weir(self):
        return self(2, 1)

    @property
    def xds(self):
        return f"{self.weir}:15010"

    @property
    def picker(self):
        return f"{self.weir}:9002"

    @property
    def waypoint(self):
        return self(9, 1)

    @property
    def gateway(self):
        return self(9, 2)

    @property
    def istiod(self):
        return self(8, 1)

    @property
    def ztunnel(self):
        """Where the clients of the waypoint are captured."""
        return self(9, 9)


SERVICE = "127.96.1.1:8000"
HBONE, POD, GATEWAY, CAPTURE, ADMIN = 15008, 8000, 8080, 9000, 19000


@contextmanager
def claimed(octet=None):
    """`Places` that nobody else has until the block ends. Raises `OSError`."""
    octets = [octet] if octet is not None else random.sample(OCTETS, len(OCTETS))
    for each in octets:
        places = Places(each)
        with socket.socket() as claim:
            try:
                claim.bind((places(255, 254), CLAIM))
            except OSError:
                continue
            yield places
            return
    raise OSError(f"127.{octets[0]}.0.0/16 and {len(octets) - 1} others are taken by other meshes")
