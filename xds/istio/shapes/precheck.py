"""What stands in the way of Weir in an Istio, before anything is installed."""

from collections.abc import Iterator
from dataclasses import dataclass

from xds.istio.peer_authentication import ROOT_NAMESPACE
from xds.istio.shapes.inventory import INFERENCE, Inventory
from xds.istio.shapes.versions import NEEDS_INFERENCE, RUN, TIERS, VERSIONS, Cell, cell
from xds.istio.shapes.wiring import Host, Proxy, Shape, Version
from xds.pool import Tier

HTTP2_NAMES = ("grpc", "http2")
GATEWAY_API = "PILOT_ENABLE_GATEWAY_API"
AMBIENT, WAYPOINT = "PILOT_ENABLE_AMBIENT", "istio-waypoint"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing, and what to do. `stops`: some or all of Weir does not work until it is done."""

    where: str
    what: str
    do: str
    stops: bool = False


def matrix(version: Version) -> dict[Shape, dict[Tier, Cell]]:
    return {shape: {tier: cell(shape, tier, version) for tier in TIERS} for shape in Shape}


def findings(version: Version, inventory: Inventory, xds: Host) -> list[Finding]:
    return [
        *_of_version(version, inventory),
        *_of_flags(inventory),
        *_of_service(inventory, xds),
        *_of_filters(inventory),
    ]


def _of_version(version: Version, inventory: Inventory) -> Iterator[Finding]:
    where = f"Istio {version}"
    if version < VERSIONS[0]:
        do = f"upgrade to {VERSIONS[0]} or later"
        yield Finding(where, "older than what Weir's policies need", do, stops=True)
    elif version > RUN:
        do = "try it on one gateway first, and look with `istioctl proxy-config`"
        yield Finding(where, f"newer than {RUN}, which is what was run", do)
    elif version < RUN:
        do = "try it on one gateway first; what the table calls read was not run"
        yield Finding(where, f"older than {RUN}, which is what was run", do)
    others = {name: found for name, found in inventory.versions().items() if found != version}
    for name, found in others.items():
        do = "print manifests for each revision with --istio-version"
        yield Finding(f"Deployment {name}", f"is Istio {found}, beside {version}", do)


def _of_flags(inventory: Inventory) -> Iterator[Finding]:
    if not inventory.istiods:
        do = "export it with the rest, or see that its flags are as the documentation says"
        yield Finding("istiod", "not in the configuration, so its flags are not known", do)
        return
    where = f"Deployment {next(iter(sorted(inventory.istiods)))}"
    said = inventory.flag(INFERENCE)
    if said is None or said.lower() != "true":
        shapes = ", ".join(shape.value for shape in Shape if shape in NEEDS_INFERENCE)
        what = f"{INFERENCE} is {said or 'not set'}: without it there is no {shapes}"
        do = f"set pilot.env.{INFERENCE}=true, or use the other shapes"
        yield Finding(where, what, do, stops=True)
    if (inventory.flag(GATEWAY_API) or "true").lower() == "false":
        what = f"{GATEWAY_API} is false: Istio looks at no Gateway and no HTTPRoute"
        yield Finding(where, what, f"set pilot.env.{GATEWAY_API}=true", stops=True)
    waypoints = [
        name
        for name, each in sorted(inventory.gateways.items())
        if each.spec.class_name == WAYPOINT
    ]
    if waypoints and (inventory.flag(AMBIENT) or "false").lower() != "true":
        what = f"{AMBIENT} is not true: the waypoint {waypoints[0]} has no Services"
        yield Finding(where, what, "install istiod with profile=ambient", stops=True)


def _of_service(inventory: Inventory, xds: Host) -> Iterator[Finding]:
    where = f"Service {xds.namespace}/{xds.service}"
    service = inventory.services.get(f"{xds.namespace}/{xds.service}")
    if service is None:
        do = "install Weir before the manifests are applied: proxies reach it by this Service"
        yield Finding(where, "not in the configuration", do)
        return
    port = next((each for each in service.spec.ports if each.port == xds.port), None)
    if port is None:
        do = "say --xds-address HOST:PORT as the Service has it"
        yield Finding(where, f"has no port {xds.port}", do, stops=True)
    elif (port.app_protocol or port.name).partition("-")[0].lower() not in HTTP2_NAMES:
        what = f"port {xds.port} is named `{port.name}`: Istio would speak HTTP/1.1 to it"
        yield Finding(where, what, "name it grpc-xds", stops=True)


def _of_filters(inventory: Inventory) -> Iterator[Finding]:
    for name, gateway in sorted(inventory.gateways.items()):
        if not inventory.is_istios(gateway):
            continue
        proxy = Proxy(gateway.metadata.namespace, gateway.metadata.name)
        targets = inventory.foreign_filters(proxy, ROOT_NAMESPACE)
        for item, kind in targets:
            if kind in ("CLUSTER", "HTTP_FILTER", "HTTP_ROUTE"):
                what = f"applies to {kind} of Gateway {name}"
                do = "see that it touches neither ext_proc nor a pool's cluster or route"
                yield Finding(f"EnvoyFilter {item}", what, do)
