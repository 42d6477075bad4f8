"""Where a pool is reached through a waypoint: by Services, each port on its own.

A Service whose HTTPRoute leads to the pool, or one over the pool's Pods that has a waypoint.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from xds.istio.objects import HTTPRoute
from xds.istio.shapes import shadows, traffic
from xds.istio.shapes.inventory import is_ours, is_service
from xds.istio.shapes.question import (
    Aside,
    Question,
    accepted,
    leads_to,
    name_of,
    pools_of,
    rule_name,
)
from xds.istio.shapes.wiring import (
    Host,
    Proxy,
    SecondService,
    Shape,
    ShapeError,
    Wiring,
)
from xds.manifests import Service, ServicePort

WAYPOINT_FOR = "istio.io/waypoint-for"
NOT_HTTP = ("tcp", "tls", "https", "udp", "mongo", "mysql", "redis")
HTTP2 = ("http2", "grpc", "kubernetes.io/h2c")


@dataclass(frozen=True, slots=True)
class _Place:
    """A port of a Service behind a waypoint, and its routes."""

    service: Service
    port: ServicePort
    host: Host
    proxy: Proxy
    routes: tuple[HTTPRoute, ...]
    virtual_service: str = ""

    @property
    def is_ours_to_route(self) -> bool:
        """Are there no routes, or none but those that we printed?"""
        return not self.virtual_service and all(is_ours(route) for route in self.routes)


def wirings(question: Question, aside: Aside) -> Iterator[Wiring]:
    """One for each port of a Service. Raises `ShapeError`."""
    for place in _places(question, aside):
        shape = question.shape or _fitting(question, place)
        match shape:
            case Shape.WAYPOINT_INFERENCEPOOL:
                yield _to_the_pool(question, place)
            case Shape.WAYPOINT_SECOND_SERVICE:
                yield _to_a_second_service(question, place)
            case _:
                yield _to_our_cluster(question, place)


def _places(question: Question, aside: Aside) -> Iterator[_Place]:
    routed = _parents(question)
    alike = question.inventory.alike(question.pool)
    services = {(each.metadata.namespace, each.metadata.name): each for each in alike}
    services |= {key: service for key, (service, _) in routed.items()}
    for key, service in sorted(services.items()):
        ports = routed[key][1] if key in routed else None
        where = f"Service {key[0]}/{key[1]}"
        proxy = question.inventory.waypoint_of(service)
        if proxy is None:
            if ports is not None:
                raise ShapeError(
                    f"{where}: metadata.labels[istio.io/use-waypoint]: missing, and a route of the "
                    "Service to the pool is carried out by nothing but a waypoint; add it"
                )
            aside.hints.append(f"{where}: selects the pool's Pods, but has no waypoint")
            continue
        _check(question, proxy, where)
        for port in service.spec.ports:
            if ports is not None and port.port not in ports:
                continue
            if reason := _unusable(question, port, routed=ports is not None):
                aside.skipped.append(f"{where}: port {port.port}: {reason}")
            else:
                yield _place(question, service, port, proxy)


def _check(question: Question, proxy: Proxy, where: str) -> None:
    gateway = question.inventory.gateways.get(str(proxy))
    if gateway is None:
        raise ShapeError(
            f"{where}: metadata.labels[istio.io/use-waypoint]: Gateway {proxy} is not in the "
            "configuration; add it"
        )
    serves = gateway.metadata.labels.get(WAYPOINT_FOR, "service")
    if serves not in ("service", "all"):
        raise ShapeError(
            f"Gateway {proxy}: metadata.labels[{WAYPOINT_FOR}]: {serves}: requests to {where} do "
            "not go through it; make it service or all"
        )


def _parents(question: Question) -> dict[tuple[str, str], tuple[Service, set[int]]]:
    """Services whose routes lead to the pool, and at which of their ports."""
    found: dict[tuple[str, str], tuple[Service, set[int]]] = {}
    for _, route in sorted(question.inventory.routes.items()):
        if not leads_to(route, question.name):
            continue
        for number, ref in enumerate(route.spec.parent_refs):
            if not is_service(ref):
                continue
            key = ref.namespace or route.metadata.namespace, ref.name
            service = question.inventory.services.get("/".join(key))
            if service is None:
                raise ShapeError(
                    f"HTTPRoute {name_of(route)}: spec.parentRefs[{number}]: Service "
                    f"{'/'.join(key)} is not in the configuration; add it"
                )
            ports = {ref.port} if ref.port else {port.port for port in service.spec.ports}
            found.setdefault(key, (service, set()))[1].update(ports)
    return found


def _unusable(question: Question, port: ServicePort, *, routed: bool) -> str:
    protocol = (port.app_protocol or port.name.partition("-")[0]).lower()
    if protocol in NOT_HTTP:
        return f"is {protocol}; only HTTP can be directed, name it http or give it an appProtocol"
    if routed:
        return ""  # the route's cluster has the pool's own ports
    target = port.port if port.target_port is None else port.target_port
    numbers = {each.number for each in question.pool.spec.target_ports}
    if isinstance(target, str):
        return f"targetPort {target} is a name, and Weir answers for numbers; write the number"
    return "" if target in numbers else f"targetPort {target} is not one of the pool's"


def _place(question: Question, service: Service, port: ServicePort, proxy: Proxy) -> _Place:
    meta = service.metadata
    host = Host(meta.namespace, meta.name, port.port, question.istio.domain)
    found = question.inventory.virtual_service_of(host.fqdn, meta.name, meta.namespace)
    return _Place(
        service=service,
        port=port,
        host=host,
        proxy=proxy,
        routes=tuple(question.inventory.routes_of(service, port.port)),
        virtual_service=f"{found.metadata.namespace}/{found.metadata.name}" if found else "",
    )


def _fitting(question: Question, place: _Place) -> Shape:
    if any(question.name in pools for _, _, pools in _rules(place)):
        return Shape.WAYPOINT_INFERENCEPOOL
    if place.routes or place.virtual_service:
        return Shape.WAYPOINT_SECOND_SERVICE
    return Shape.WAYPOINT_OWN_CLUSTER


def _rules(place: _Place) -> Iterator[tuple[HTTPRoute, int, list[str]]]:
    for route in place.routes:
        for number, rule in enumerate(route.spec.rules):
            yield route, number, pools_of(route, rule)


def _wiring(question: Question, place: _Place, shape: Shape, others: list[str]) -> Wiring:
    members = question.members(others)
    notes = [
        note
        for route in place.routes
        for ref in route.spec.parent_refs
        if is_service(ref) and ref.name == place.host.service and (note := accepted(route, ref))
    ]
    return Wiring(
        shape=shape,
        proxy=place.proxy,
        istio=question.istio,
        xds=question.xds,
        members=members,
        service=place.host,
        service_http2=_speaks_http2(place.port),
        notes=(*notes, *question.notes(members, place.proxy)),
    )


def _speaks_http2(port: ServicePort) -> bool:
    return (port.app_protocol or port.name.partition("-")[0]).lower() in HTTP2


def _to_the_pool(question: Question, place: _Place) -> Wiring:
    others = [pool for _, _, pools in _rules(place) for pool in pools]
    wiring = _wiring(question, place, Shape.WAYPOINT_INFERENCEPOOL, others)
    ours = [rule_name(route, number) for route, number, pools in _rules(place) if pools]
    notes = list(wiring.notes)
    if place.virtual_service:
        notes.append(_to_be_turned(f"VirtualService {place.virtual_service}", "the pool"))
    elif place.routes and question.name not in others:
        notes.append(_to_be_turned(_named(place), f"InferencePool {question.name}"))
    for member in wiring.members:
        host = shadows.host_of(member, question.istio.domain)
        rule = traffic.rule_for(
            question.inventory.rules.values(), host, place.proxy, question.istio
        )
        notes += traffic.patched(rule, host, waypoint=True)
    return replace(
        wiring,
        shadows=tuple(shadows.missing(question.inventory, wiring.members)),
        route_missing=place.is_ours_to_route,
        only_routes=_some(place, ours),
        notes=tuple(notes),
    )


def _to_a_second_service(question: Question, place: _Place) -> Wiring:
    wiring = _wiring(question, place, Shape.WAYPOINT_SECOND_SERVICE, [])
    second, led = _second(question, place)
    notes = list(wiring.notes)
    where = f"Service {second.host.namespace}/{second.host.service}, port {second.host.port}"
    if place.virtual_service:
        notes.append(_to_be_turned(f"VirtualService {place.virtual_service}", where))
    elif place.routes and not led:
        notes.append(_to_be_turned(_named(place), where))
    rules = question.inventory.rules.values()
    first = traffic.rule_for(rules, place.host, place.proxy, question.istio)
    rule = traffic.rule_for(rules, second.host, place.proxy, question.istio)
    notes += traffic.patched(rule, second.host, waypoint=True)
    if first is not None and first is not rule:
        notes.append(
            f"DestinationRule {first.metadata.namespace}/{first.metadata.name}: spec.host: it is "
            f"for Service {place.host.service}; write one for {second.host.service}, where "
            "requests go"
        )
    return replace(
        wiring,
        second=second,
        route_missing=place.is_ours_to_route,
        only_routes=_some(place, led),
        notes=tuple(notes),
    )


def _second(question: Question, place: _Place) -> tuple[SecondService, list[str]]:
    """The Service past the waypoint that routes lead to, or would; and the names of those."""
    found: tuple[Service, int] | None = None
    led = []
    for route, number, _ in _rules(place):
        for ref in route.spec.rules[number].backend_refs:
            key = f"{ref.namespace or route.metadata.namespace}/{ref.name}"
            service = question.inventory.services.get(key)
            past = service is not None and question.inventory.waypoint_of(service) is None
            if past and service in question.inventory.alike(question.pool) and ref.port:
                found = found or (service, ref.port)
                led.append(rule_name(route, number))
    target = place.port.target_port or place.port.port
    selector = tuple(sorted((place.service.spec.selector or {}).items()))
    if found is None:
        host = replace(place.host, service=f"{place.host.service}-weir")
        key = f"{host.namespace}/{host.service}"
        known = question.inventory.services.get(key)
        return SecondService(host, target, selector, missing=known is None or is_ours(known)), []
    service, port = found
    host = Host(service.metadata.namespace, service.metadata.name, port, question.istio.domain)
    names = list(dict.fromkeys(led))
    return SecondService(host, target, selector, missing=is_ours(service)), names


def _to_our_cluster(question: Question, place: _Place) -> Wiring:
    if place.routes or place.virtual_service:
        owner = (
            f"VirtualService {place.virtual_service}" if place.virtual_service else _named(place)
        )
        raise ShapeError(
            f"{owner}: istiod patches no route of a Service that has one; remove it, or use "
            "--shape waypoint-second-service"
        )
    wiring = _wiring(question, place, Shape.WAYPOINT_OWN_CLUSTER, [])
    rules = question.inventory.rules.values()
    rule = traffic.rule_for(rules, place.host, place.proxy, question.istio)
    http2 = _speaks_http2(place.port)
    carried = traffic.carried_over(rule, place.host, waypoint=True, http2=http2)
    return replace(wiring, traffic=carried)


def _named(place: _Place) -> str:
    return "HTTPRoute " + " and ".join(name_of(route) for route in place.routes)


def _to_be_turned(owner: str, where: str) -> str:
    return f"{owner}: after step 1, and before anything is removed: send its requests to {where}"


def _some(place: _Place, ours: list[str]) -> tuple[str, ...]:
    """The routes that are ours, where some are not: else there is nothing to tell apart."""
    everyone = [rule_name(route, number) for route, number, _ in _rules(place)]
    return tuple(ours) if ours and set(ours) != set(everyone) else ()
