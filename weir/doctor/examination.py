"""What is wrong between Weir and one proxy, and what to do about it. Pure.

Each check looks at the proxy and at the control plane's `/status`, some at both several times with
traffic in between. What cannot be told is UNKNOWN, which is not well. A control plane that is dead
is when one looks most: then the proxy alone tells what it lives on.

    answering    every replica of the control plane that we were given answers
    subscribed   the proxy has a stream with us for the pool's assignment, and did not refuse it
    endpoints    what it uses is what we say, and not the copy that it took from its twin
    twin         somebody keeps istiod's own assignment at hand for a start without us
    policy       the pool's cluster looks at what the picker says
    route        every route to the pool asks a picker, about this pool
    failing      a picker that is dead or silent costs little and fails nothing
    breakers     neither pool nor picker is cut off at a default limit
    picker       picks are asked for, and answered in time
    honoured     who is picked serves: silent round robin is what this finds
    draining     no old connection goes on under the rules before
"""

from collections.abc import Sequence
from random import Random

from weir.doctor.configuration import answering, endpoints, policy, route, subscribed, twin
from weir.doctor.finding import Finding, Sight, Verdict
from weir.doctor.proxy import Proxy
from weir.doctor.traffic import draining, honoured, picker
from xds.istio.assignment import shadow_service


def examine(pool: str, sights: Sequence[Sight], rng: Random) -> list[Finding]:
    """All checks of one pool and proxy, from two looks or more."""
    before, after = sights[0], sights[-1]
    findings = list(answering(after))
    resources = after.resources(pool)
    if not resources:
        return [*findings, _no_pool(pool, after)]
    used = [cluster for name in resources for cluster in after.proxy.takes(name)]
    routed = {asking.cluster for asking in after.proxy.askings}
    ours = [cluster for cluster in used if cluster.name in routed]
    twins = [cluster for cluster in used if cluster.name not in routed]
    if not ours:
        return [*findings, _no_cluster(pool, after.proxy)]
    askings = [a for a in after.proxy.askings if a.cluster in {each.name for each in ours}]
    for cluster in ours:
        own = [each for each in twins if each.service_name == cluster.service_name]
        findings += subscribed(cluster, after)
        findings.append(endpoints(pool, cluster, own, after))
        findings.append(twin(cluster, own, after))
        findings.append(policy(cluster))
    for asking in askings:
        findings += route(pool, after.tier(pool), asking, after.proxy)
    if any(asking.picker for asking in askings):
        findings.append(picker(askings, ours, before.proxy, after.proxy))
        findings.append(honoured(pool, ours, sights, rng))
    findings.append(draining(after.proxy))
    return findings


def _no_pool(pool: str, sight: Sight) -> Finding:
    if not sight.views:
        return Finding(
            "subscribed",
            Verdict.UNKNOWN,
            f"no route of {sight.proxy.node or 'the proxy'} asks a picker about {pool}",
            "look again when the control plane answers: it knows the pool's clusters",
        )
    known = sorted({name for view in sight.views for name in view["pools"]})
    listed = f"known are {', '.join(known)}" if known else "no pool is"
    return Finding(
        "subscribed",
        Verdict.WRONG,
        f"Weir does not know pool {pool}; {listed}",
        "look at the InferencePool, and at `problems` in `weir status`",
    )


def _no_cluster(pool: str, proxy: Proxy) -> Finding:
    namespace, _, name = pool.partition("/")
    service = shadow_service(name)
    vip = f"|http|{service}.{namespace}.svc."
    if enrolled := [each.cluster for each in proxy.askings if vip in each.cluster]:
        return Finding(
            "subscribed",
            Verdict.WRONG,
            f"a route leads to {enrolled[0]}, which no EnvoyFilter reaches: the Service that "
            "istiod made of the pool is enrolled in the waypoint, with its Namespace",
            f"kubectl label service -n {namespace} {service} istio.io/use-waypoint=none; it is in "
            "step 1 of `weir istio manifests --shape waypoint-inferencepool`",
        )
    return Finding(
        "subscribed",
        Verdict.WRONG,
        f"no route of {proxy.node or 'the proxy'} leads to a cluster of {pool}'s endpoints",
        f"apply what `weir istio manifests {pool.partition('/')[2]}` prints, and see that the "
        "HTTPRoute is accepted; on a waypoint, that the Service uses it",
    )
