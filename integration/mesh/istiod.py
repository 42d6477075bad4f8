"""A stand-in for istiod: what it generated, patched by EnvoyFilters, served over ADS.

Every change is a push: `apply` is what happens after somebody applied or removed an EnvoyFilter
or an HTTPRoute.
"""

import json
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path

import yaml

from integration.envoyfilter import (
    Configuration,
    Kind,
    Proxy,
    apply,
    referenced_services,
    selected,
)
from integration.mesh.ads import Ads
from integration.mesh.places import GATEWAY, HBONE
from integration.messages import serialised
from xds.snapshot import TypeUrl

DATA = Path(__file__).parents[1] / "istiod"
XDS = "outbound|15010||weir-xds.weir.svc.cluster.local"
POOL = "outbound|54321||llm-pool-ip-1c222a41.ns.svc.cluster.local"
VIP = "inbound-vip|8000|http|llm.ns.svc.cluster.local"
OURS = ("weir-xds.weir.svc.cluster.local", "llm-epp.ns.svc.cluster.local")
GATEWAY_PROXY = Proxy(Kind.GATEWAY, "inference-gateway")
WAYPOINT_PROXY = Proxy(Kind.WAYPOINT, "waypoint")
ISTIO_ONLY = ("udpa.type.v1.TypedStruct", "istio.", "io.istio.")


@dataclass(frozen=True, slots=True)
class Shape:
    """One way to wire Weir in; `start` is the folder of `unpatched/` that it begins with."""

    name: str
    start: str
    service: str  # the EDS name that Weir is asked for
    cluster: str  # where the stand-in patches of `patched/` have it

    @property
    def proxy(self):
        return GATEWAY_PROXY if self.name.startswith("gateway") else WAYPOINT_PROXY

    @property
    def filters(self):
        """The stand-in patches that istiod's data comes with."""
        return [yaml.safe_load((DATA / "patched" / self.name / "envoyfilter.yaml").read_text())]


SECOND = "outbound|8000||llm-weir.ns.svc.cluster.local"
SHAPES = {
    shape.name: shape
    for shape in (
        Shape("gateway", "gateway", POOL, POOL),
        Shape("gateway-own-cluster", "gateway", POOL, "weir|54321|llm-pool.ns"),
        Shape("waypoint-inferencepool", "waypoint-inferencepool", POOL, POOL),
        Shape("waypoint-second-service", "waypoint-second-service", SECOND, SECOND),
        Shape("waypoint-own-cluster", "waypoint-own-cluster", VIP, "weir|8000|llm.ns"),
    )
}


def read(folder, kind, move=str):
    path = DATA / folder / f"{kind}.json"
    return json.loads(move(path.read_text())) if path.exists() else []


def generated(start, filters, proxy, move=str):
    """istiod's configuration for a proxy without the effect of any patch.

    A waypoint has clusters of ours only where an annotation of its EnvoyFilters asks for them.
    """
    folder = f"unpatched/{start}"
    kinds = ("clusters", "listeners", "routes")
    found = Configuration(*(read(folder, kind, move) for kind in kinds))
    if proxy.kind is Kind.GATEWAY:
        return found
    unasked = set(OURS) - referenced_services(selected(filters, proxy))
    clusters = [each for each in found.clusters if each["name"].rpartition("|")[2] not in unasked]
    return replace(found, clusters=clusters)


def assignments(move=str):
    """What istiod answers for each EDS name, of all its data: names mean the same everywhere."""
    found = {}
    for folder in sorted(DATA.glob("*/*")):
        for each in read(folder, "endpoints", move):
            if each.get("endpoints") or each["cluster_name"] not in found:
                found[each["cluster_name"]] = each
    return found


def capture(assignment, endpoints):
    """An assignment as istiod writes it where these "ip:port" are captured by ztunnel."""
    for locality in assignment.get("endpoints", []):
        for each in locality["lb_endpoints"]:
            socket = each["endpoint"]["address"].get("socket_address", {})
            name = f"{socket.get('address')}:{socket.get('port_value')}"
            if name in endpoints:
                each["endpoint"]["address"] = {
                    "envoy_internal_address": {
                        "server_listener_name": "connect_originate",
                        "endpoint_id": name,
                    }
                }
                each["metadata"]["filter_metadata"] |= {
                    "envoy.filters.listener.original_dst": {"local": name},
                    "envoy.transport_socket_match": {"tunnel": "http"},
                }
    return assignment


def loadable(value, places):
    """The same as an Envoy without Istio's extensions takes it, at our addresses.

    Filters of Istio's own types are dropped, of listeners and of clusters, and filter state that
    was Istio's hashable string is Envoy's. All else is as istiod wrote it.
    """
    if isinstance(value, list):
        return [loadable(each, places) for each in value if not _is_istios(each)]
    if not isinstance(value, dict):
        return value
    found = {key: loadable(each, places) for key, each in value.items()}
    if found.get("factory_key") == "istio.hashable_string":
        found["factory_key"] = "envoy.hashable_string"
    if found.get("address") == "0.0.0.0" and "port_value" in found:
        if found["port_value"] == HBONE:
            return {"address": places.waypoint, "port_value": HBONE}
        return {"address": places.gateway, "port_value": GATEWAY}
    return found


def _is_istios(value):
    config = value.get("typed_config") if isinstance(value, dict) else None
    kind = config.get("@type", "") if isinstance(config, dict) else ""
    return kind.rpartition("/")[2].startswith(ISTIO_ONLY)


class Istiod:
    """The EnvoyFilters and the HTTPRoute of the day, and what a proxy is sent because of them."""

    def __init__(self, proxy, places, more_endpoints=lambda each: each):
        self.proxy = proxy
        self.silences = []
        self.configuration = None
        self._places = places
        found = assignments(places.move).items()
        self._assignments = {name: more_endpoints(each) for name, each in found}
        self._endpoints = {
            name: serialised("endpoints", each) for name, each in self._assignments.items()
        }
        self._ads = Ads()

    async def apply(self, filters, *, start, edit=None):
        """The EnvoyFilters (documents) as they are now, on what `unpatched/<start>` has.

        `edit` takes that Configuration and returns what istiod generates instead. Returns the
        patches that changed nothing.
        """
        before = generated(start, filters, self.proxy, self._places.move)
        before = edit(before) if edit is not None else before
        configuration, self.silences = apply(filters, self.proxy, before)
        await self.push(configuration)
        return self.silences

    async def push(self, configuration):
        """Send a configuration of the test's own making."""
        self.configuration = configuration
        bodies = {TypeUrl.ENDPOINT: self._endpoints}
        for kind, url in (
            ("clusters", TypeUrl.CLUSTER),
            ("listeners", TypeUrl.LISTENER),
            ("routes", TypeUrl.ROUTE),
        ):
            plain = loadable(getattr(configuration, kind), self._places)
            bodies[url] = {each["name"]: serialised(kind, each) for each in plain}
        await self._ads.publish(bodies)

    async def ready(self, cluster, addresses):
        """The one endpoint of a cluster is, from now on, at each of these addresses."""
        assignment = deepcopy(self._assignments[cluster])
        (locality,) = assignment["endpoints"]
        (one, *_) = locality["lb_endpoints"]
        copies = [deepcopy(one) for _ in addresses]
        for copy, address in zip(copies, addresses, strict=True):
            copy["endpoint"]["address"]["socket_address"]["address"] = address
        locality |= {"lb_endpoints": copies, "load_balancing_weight": len(copies)}
        self._endpoints = self._endpoints | {cluster: serialised("endpoints", assignment)}
        await self.push(self.configuration)

    async def start(self):
        await self._ads.start(f"{self._places.istiod}:15010")

    async def stop(self):
        await self._ads.stop()

    @property
    def refusals(self):
        """By type, why the proxy refuses what it was sent last."""
        return self._ads.refusals

    async def settled(self, seconds=20):
        """Wait until the proxy has taken or refused all that it was sent.

        It takes clusters once they are warm, or their fetch has timed out.
        """
        await self._ads.settled(seconds)
