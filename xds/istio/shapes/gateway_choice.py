"""Where a pool is reached through a gateway: by HTTPRoutes whose parent the Gateway is."""

from collections.abc import Iterator

from xds.istio.objects import HTTPRoute, ParentRef
from xds.istio.shapes import shadows, traffic
from xds.istio.shapes.inventory import is_gateway
from xds.istio.shapes.question import (
    Aside,
    Question,
    accepted,
    leads_to,
    name_of,
    pools_of,
    rule_name,
)
from xds.istio.shapes.wiring import Proxy, Rule, Shape, ShapeError, Traffic, Wiring


def wirings(question: Question, aside: Aside) -> Iterator[Wiring]:
    """One for each gateway of Istio's. Raises `ShapeError`."""
    for proxy, routes in _gateways(question, aside).items():
        yield _wiring(question, proxy, routes)


def _gateways(question: Question, aside: Aside) -> dict[Proxy, list[tuple[HTTPRoute, ParentRef]]]:
    found: dict[Proxy, list[tuple[HTTPRoute, ParentRef]]] = {}
    for _, route in sorted(question.inventory.routes.items()):
        if not leads_to(route, question.name):
            continue
        for number, ref in enumerate(route.spec.parent_refs):
            if not is_gateway(ref):
                continue
            proxy = _proxy(route, ref)
            where = f"HTTPRoute {name_of(route)}: spec.parentRefs[{number}]"
            gateway = question.inventory.gateways.get(str(proxy))
            if gateway is None:
                raise ShapeError(f"{where}: Gateway {proxy} is not in the configuration; add it")
            if question.inventory.is_istios(gateway):
                routes = found.setdefault(proxy, [])
                if all(route is not each for each, _ in routes):
                    routes.append((route, ref))
            else:
                aside.skipped.append(
                    f"{where}: Gateway {proxy} has class {gateway.spec.class_name}, "
                    "which is not Istio's"
                )
    return found


def _wiring(question: Question, proxy: Proxy, routes: list[tuple[HTTPRoute, ParentRef]]) -> Wiring:
    istio = question.istio
    fitting = Shape.GATEWAY if istio.replaces_lists else Shape.GATEWAY_OWN_CLUSTER
    shape = question.shape or fitting
    notes = [note for route, ref in routes if (note := accepted(route, ref))]
    rules = [rule for route, _ in routes for rule in _rules(question, route)]
    _refuse_twins(question, proxy, rules)
    members = question.members([pool for rule in rules for pool in rule.pools])
    host = shadows.host_of(members[0], istio.domain)
    rule = traffic.rule_for(question.inventory.rules.values(), host, proxy, istio)
    carried = Traffic()
    if shape.own_cluster:
        carried = traffic.carried_over(rule, host, waypoint=False, http2=members[0].http2)
    else:
        notes += traffic.patched(rule, host, waypoint=False)
    return Wiring(
        shape=shape,
        proxy=proxy,
        istio=istio,
        xds=question.xds,
        members=members,
        rules=tuple(rules),
        traffic=carried,
        notes=(*notes, *question.notes(members, proxy)),
    )


def _rules(question: Question, route: HTTPRoute) -> Iterator[Rule]:
    for number, rule in enumerate(route.spec.rules):
        pools = pools_of(route, rule)
        if question.name in pools:
            yield Rule(
                route=name_of(route),
                name=rule_name(route, number),
                pools=tuple(pools),
                splits=len(rule.backend_refs) > 1,
                lost_override=next((each.type for each in rule.filters if each.type == "CORS"), ""),
            )


def _refuse_twins(question: Question, proxy: Proxy, rules: list[Rule]) -> None:
    """A patch goes by the route's name, and must not meet one that is not the pool's."""
    for rule in rules:
        others = [
            f"{name_of(route)} rules[{number}]"
            for _, route in sorted(question.inventory.routes.items())
            if any(
                is_gateway(ref) and _proxy(route, ref) == proxy for ref in route.spec.parent_refs
            )
            for number in range(len(route.spec.rules))
            if rule_name(route, number) == rule.name
        ]
        if len(others) > 1:
            raise ShapeError(
                f"HTTPRoute {rule.route}: the rule's name `{rule.name}` is that of "
                f"{' and '.join(others)} at Gateway {proxy}, and a patch would meet all of them; "
                "give each its own name"
            )


def _proxy(route: HTTPRoute, ref: ParentRef) -> Proxy:
    return Proxy(ref.namespace or route.metadata.namespace, ref.name)
