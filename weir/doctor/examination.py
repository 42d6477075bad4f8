"""What is wrong between Weir and one proxy, and what to do about it. Pure.

Each check looks at the proxy and at the control plane's `/status`, some at both twice with traffic
in between. What cannot be told is UNKNOWN, which is not well.

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

from weir.doctor.configuration import endpoints, policy, route, subscribed, twin
from weir.doctor.finding import Finding, Sight, Verdict
from weir.doctor.proxy import Proxy
from weir.doctor.traffic import draining, honoured, picker


def examine(pool: str, before: Sight, after: Sight) -> list[Finding]:
    """All checks of one pool and proxy."""
    resources = after.resources(pool)
    if not resources:
        known = sorted({name for view in after.views for name in view["pools"]})
        listed = f"known are {', '.join(known)}" if known else "no pool is"
        return [
            Finding(
                "subscribed",
                Verdict.WRONG,
                f"Weir does not know pool {pool}; {listed}",
                "look at the InferencePool, and at `problems` in `weir status`",
            )
        ]
    used = [cluster for name in resources for cluster in after.proxy.takes(name)]
    routed = {asking.cluster for asking in after.proxy.askings}
    ours = [cluster for cluster in used if cluster.name in routed]
    twins = [cluster for cluster in used if cluster.name not in routed]
    if not ours:
        return [_no_cluster(pool, after.proxy)]
    askings = [a for a in after.proxy.askings if a.cluster in {each.name for each in ours}]
    findings: list[Finding] = []
    for cluster in ours:
        findings += subscribed(cluster, after)
        findings.append(endpoints(pool, cluster, after))
        findings.append(twin(cluster, twins, after))
        findings.append(policy(cluster))
    for asking in askings:
        findings += route(pool, after.tier(pool), asking, after.proxy)
    if any(asking.picker for asking in askings):
        findings.append(picker(askings, ours, before.proxy, after.proxy))
        findings.append(honoured(pool, ours, before, after))
    findings.append(draining(after.proxy))
    return findings


def _no_cluster(pool: str, proxy: Proxy) -> Finding:
    return Finding(
        "subscribed",
        Verdict.WRONG,
        f"no route of {proxy.node or 'the proxy'} leads to a cluster of {pool}'s endpoints",
        f"apply what `weir istio manifests {pool.partition('/')[2]}` prints, and see that the "
        "HTTPRoute is accepted; on a waypoint, that the Service uses it",
    )
