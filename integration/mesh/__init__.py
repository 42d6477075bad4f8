"""Weir's wiring shapes without a cluster: real Envoys, and a stand-in for whatever else there is.

    client ─► ztunnel ═HBONE═► waypoint ═HBONE═► ztunnel ─► llm-0    captured
              (near)              │ ▲  └──────────────────► llm-1    not captured
    client ───────────────────► gateway
                                  │ ▲
                     ext_proc, EDS│ │CDS, LDS, RDS, EDS; SDS
                               Weir istiod, istio-agent

istiod may be a real one, relayed (`relay.py`, `integration.operated`).

What is real: the waypoint or gateway (an Envoy with what istiod generated, patched by EnvoyFilters,
minus what only Istio's build has), ztunnel (a second Envoy), mutual TLS with SPIFFE identities,
Weir's xDS server and ext_proc server, all connections. What stands in: istiod (`istiod.py`, pushing
as it does), istio-agent (`secrets.py`), the model servers (`pods.py`), Kubernetes' objects (a
file).

    async with mesh(tmp_path, "gateway") as m:
        assert await m.traffic.served(40)
"""

from integration.mesh.istiod import SHAPES, Shape
from integration.mesh.mesh import IdlePatchError, Mesh, mesh
from integration.mesh.traffic import Load, follows
from integration.mesh.ztunnel import Tunnel

__all__ = ["SHAPES", "IdlePatchError", "Load", "Mesh", "Shape", "Tunnel", "follows", "mesh"]
