"""Checks of what is configured: the proxy's clusters and routes beside what Weir says. Pure."""

from collections.abc import Iterator, Sequence

from weir.doctor.finding import Finding, Json, Sight, Verdict
from weir.doctor.proxy import Asking, EdsCluster, Proxy
from xds.pool import EndpointId

DEFAULT_LIMIT = 1024
PATIENT_SECONDS = 5.0
AGAIN = "look again when the control plane answers"
OWN_ADS = "the proxy's own ADS, istiod's or Weir's"
ENDPOINT = "ClusterLoadAssignment"


def answering(sight: Sight) -> Iterator[Finding]:
    for address, reason in sight.silent.items():
        yield Finding(
            "answering",
            Verdict.WRONG,
            f"the control plane at {address} does not answer: {reason}",
            "proxies keep what they have of it; see that its Pods run, and the port-forward "
            "(--status)",
        )
    if sight.views and not sight.silent:
        yield Finding("answering", Verdict.OK, "the control plane says what should be")


def subscribed(cluster: EdsCluster, sight: Sight) -> Iterator[Finding]:
    streams = _streams(cluster, sight)
    if not streams and not sight.views:
        yield Finding(
            "subscribed",
            Verdict.UNKNOWN,
            f"{cluster.name} takes its endpoints through {cluster.source or OWN_ADS}",
            AGAIN,
        )
        return
    if not streams and not cluster.source:
        yield Finding(
            "subscribed",
            Verdict.WRONG,
            f"{cluster.name} takes its endpoints from istiod alone",
            "the EnvoyFilter is missing or matches nothing: apply what `weir istio manifests` "
            "prints, in the Gateway's namespace and with it as targetRef",
        )
        return
    if not streams:
        yield Finding(
            "subscribed",
            Verdict.WRONG,
            f"{sight.proxy.node} has no stream with Weir for {cluster.service_name}"
            + (f", which it should have through {cluster.source}" if cluster.source else ""),
            "see that the proxy reaches Weir's xDS Service (NetworkPolicy; its Pods must not be "
            "captured: istio.io/dataplane-mode: none), that it is let in (weir_xds_turned_away_"
            "total), and that every replica of Weir was given with --status",
        )
        return
    refusals = [
        client["refusals"][ENDPOINT] for client in streams if ENDPOINT in client["refusals"]
    ]
    if refusals:
        reason = refusals[0]["reason"]
        yield Finding(
            "subscribed",
            Verdict.WRONG,
            f"the proxy refuses {cluster.service_name}: {reason}",
            "what it accepted before stands; `weir diff NODE` shows both",
        )
        return
    yield Finding("subscribed", Verdict.OK, f"{cluster.service_name}: acknowledged")


def _streams(cluster: EdsCluster, sight: Sight) -> list[Json]:
    return [
        client
        for view in sight.views
        for client in view["clients"]
        if client["node"] == sight.proxy.node
        and cluster.service_name
        in {
            *client["types"].get(ENDPOINT, {}).get("should_have", {}),
            *client["types"].get(ENDPOINT, {}).get("has", {}),
        }
    ]


def endpoints(pool: str, cluster: EdsCluster, twins: Sequence[EdsCluster], sight: Sight) -> Finding:
    """`twins` have istiod's assignment, if it is at hand."""
    wanted = [
        {
            each["endpoint"]: (each["weight"], each["priority"])
            for each in view["pools"][pool]["endpoints"]
            if each["weight"] is not None
        }
        for view in sight.views
        if pool in view["pools"]
    ]
    has = _weighted(cluster)
    if has in wanted or any(has.items() <= each.items() and has for each in wanted):
        return Finding("endpoints", Verdict.OK, f"{len(has)} endpoints, weighted as Weir says")
    # The counter says that it once was so; Weir's own may have come and gone since.
    cached = sight.proxy.stat(f"cluster.{cluster.stat_name}.assignment_use_cached")
    if cached and any(has == _weighted(each) for each in twins):
        return Finding(
            "endpoints",
            Verdict.WRONG,
            f"{cluster.name} lives on its twin's copy of istiod's endpoints",
            "Weir's weights are not in effect, and Pods that die stay until it is back",
        )
    if not wanted:
        return Finding(
            "endpoints",
            Verdict.UNKNOWN,
            f"{len(has)} endpoints, as Weir last said or istiod has them",
            "Pods that die stay until the control plane is back; look again when it answers",
        )
    want = wanted[0]
    odd = sorted(name for name in has.keys() | want.keys() if has.get(name) != want.get(name))
    shown = ", ".join(f"{name}: {has.get(name)}, {want.get(name)}" for name in odd[:3])
    return Finding(
        "endpoints",
        Verdict.WRONG,
        f"{len(odd)} endpoints differ, (weight, priority) is and should be: {shown}",
        "if they change by the second, look again; else `weir diff NODE`",
    )


def _weighted(cluster: EdsCluster) -> dict[EndpointId, tuple[int, int]]:
    return {name: (host.weight, host.priority) for name, host in cluster.hosts.items()}


def twin(cluster: EdsCluster, twins: Sequence[EdsCluster], sight: Sight) -> Finding:
    if not cluster.source and any("Cluster" in c["types"] for c in _streams(cluster, sight)):
        return Finding("twin", Verdict.OK, "not needed: the proxy gets its clusters from Weir too")
    if not cluster.source and not sight.views:
        return Finding("twin", Verdict.UNKNOWN, "whose the cluster is is not known", AGAIN)
    if any(not each.source for each in twins):
        return Finding("twin", Verdict.OK, "istiod's own assignment is kept at hand")
    return Finding(
        "twin",
        Verdict.WRONG,
        f"nobody keeps istiod's assignment of {cluster.service_name}",
        "a proxy that starts while Weir is away answers 503: apply the whole of "
        "`weir istio manifests`",
    )


def policy(cluster: EdsCluster) -> Finding:
    if cluster.policy == "override_host":
        return Finding("policy", Verdict.OK, "the cluster looks at picks first")
    return Finding(
        "policy",
        Verdict.WRONG,
        f"{cluster.name} balances by {cluster.policy} and never looks at a pick",
        "another EnvoyFilter or a DestinationRule set the policy; the first one wins, so see which "
        "came first (Istio before 1.32 appends: use the shape gateway-own-cluster)",
    )


def route(pool: str, tier: str, asking: Asking, proxy: Proxy) -> Iterator[Finding]:
    """`tier` is the pool's policy: whether anybody should be asked."""
    title = f"route {asking.route}"
    if not asking.picker and tier != "pick":
        yield Finding("route", Verdict.OK, f"{title} asks nobody, as the policy {tier} has it")
        return
    if not asking.picker:
        cause = f"; its {asking.has_lost} made Istio drop it" if asking.has_lost else ""
        yield Finding(
            "route",
            Verdict.WRONG,
            f"{title} leads to the pool and asks no picker{cause}",
            "apply the route patch of `weir istio manifests`; a later EnvoyFilter may undo it",
        )
        return
    if pool not in asking.pools:
        about = ", ".join(asking.pools) or "no pool"
        yield Finding(
            "route",
            Verdict.WARNING if not asking.pools else Verdict.WRONG,
            f"{title} asks about {about}",
            f"the picker needs `x-weir-pool: {pool}`, or `weir picker --pool {pool}`",
        )
    else:
        yield Finding("route", Verdict.OK, f"{title} asks {asking.picker}")
    yield _failing(asking)
    yield _breakers(asking, proxy)


def _failing(asking: Asking) -> Finding:
    if asking.full_duplex:
        return Finding(
            "failing",
            Verdict.WRONG,
            "the body goes to the picker in full duplex: most POSTs fail with 500 when it dies, "
            "and hang when it hangs",
            "use the shapes of `weir istio manifests`, which ask with headers",
        )
    if not asking.fails_open:
        return Finding(
            "failing",
            Verdict.WRONG,
            "requests fail when the picker does",
            "set failure_mode_allow (failureMode: FailOpen on the InferencePool)",
        )
    if asking.timeout_seconds > PATIENT_SECONDS:
        return Finding(
            "failing",
            Verdict.WRONG,
            f"a silent picker holds each request for {asking.timeout_seconds:g} s",
            "set message_timeout on the filter; Istio's own is 1000 s",
        )
    return Finding("failing", Verdict.OK, f"open, after {asking.timeout_seconds:g} s at the most")


def _breakers(asking: Asking, proxy: Proxy) -> Finding:
    low = [
        f"{name}: {limit}"
        for name in (asking.cluster, asking.picker)
        if (limit := proxy.limits.get(name, DEFAULT_LIMIT)) <= DEFAULT_LIMIT
    ]
    if not low:
        return Finding("breakers", Verdict.OK, "wide enough")
    return Finding(
        "breakers",
        Verdict.WARNING,
        f"requests at once are limited ({', '.join(low)})",
        "above it the proxy answers 503 (pool) or does not ask (picker): raise max_requests in the "
        "DestinationRule",
    )
