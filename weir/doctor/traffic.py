"""Checks of what happens: two looks with traffic in between. Pure."""

from weir.doctor.finding import Finding, Sight, Verdict
from weir.doctor.proxy import Asking, EdsCluster, Proxy

HONOURED = 0.98  # of picks, for what is under way when we look


def picker(askings: list[Asking], ours: list[EdsCluster], before: Proxy, after: Proxy) -> Finding:
    def grown(name: str) -> float:
        prefixes = {asking.stat_prefix for asking in askings if asking.picker}
        names = [f"http.{prefix}.ext_proc.{name}" for prefix in prefixes]
        return sum(after.stat(each) - before.stat(each) for each in names)

    started, allowed = grown("streams_started"), grown("failure_mode_allowed")
    late, sent = grown("message_timeouts"), sum(_served(ours, before, after).values())
    if not started and not sent:
        return Finding(
            "picker",
            Verdict.UNKNOWN,
            "no request came to the pool while we looked",
            "look while there is traffic, or give --probe URL",
        )
    if not started:
        return Finding(
            "picker",
            Verdict.WRONG,
            f"{sent} requests, and none asked the picker",
            "old connections may still be under the rules before (draining), or requests come by "
            "a route that asks nobody",
        )
    if allowed or late:
        return Finding(
            "picker",
            Verdict.WRONG,
            f"of {started:.0f} asked, {allowed:.0f} went on unanswered ({late:.0f} too late)",
            "see that the picker's Pods are ready and reached (mTLS, NetworkPolicy), and its CPU",
        )
    return Finding("picker", Verdict.OK, f"asked {started:.0f} times, answered each time")


def _served(ours: list[EdsCluster], before: Proxy, after: Proxy) -> dict[str, int]:
    found: dict[str, int] = {}
    for cluster in ours:
        old = before.clusters.get(cluster.name)
        for name, host in after.clusters[cluster.name].hosts.items():
            had = old.hosts[name].served if old is not None and name in old.hosts else 0
            found[name] = found.get(name, 0) + max(0, host.served - had)
    return found


def honoured(pool: str, ours: list[EdsCluster], before: Sight, after: Sight) -> Finding:
    served = _served(ours, before.proxy, after.proxy)
    earlier = before.picks(pool)
    picked = {
        name: count - earlier.get(name, 0)
        for name, count in after.picks(pool).items()
        if count > earlier.get(name, 0)
    }
    total, sent = sum(picked.values()), sum(served.values())
    if not total or not sent:
        return Finding(
            "honoured",
            Verdict.UNKNOWN,
            f"{total} picks and {sent} requests while we looked",
            "look while there is traffic, or give --probe URL",
        )
    agreed = sum(min(count, served.get(name, 0)) for name, count in picked.items())
    if agreed >= HONOURED * max(total, sent):
        return Finding("honoured", Verdict.OK, f"{agreed} of {sent} served where they were picked")
    if abs(total - sent) > (1 - HONOURED) * max(total, sent):
        return Finding(
            "honoured",
            Verdict.UNKNOWN,
            f"{total} picks, but {sent} requests through this proxy",
            "other proxies ask the same pickers: look at a quiet time with --probe URL",
        )
    return Finding(
        "honoured",
        Verdict.WRONG,
        f"{agreed} of {sent} were served where they were picked: the proxy ignores picks",
        "the policy must be override_host over metadata envoy.lb (policy), and captured Pods must "
        "be named by their internal address too: use Weir's picker, not a plain one",
    )


def draining(proxy: Proxy) -> Finding:
    chains = proxy.stat("listener_manager.total_filter_chains_draining")
    listeners = proxy.stat("listener_manager.total_listeners_draining")
    if not chains and not listeners:
        return Finding("draining", Verdict.OK, "every connection is under the newest rules")
    return Finding(
        "draining",
        Verdict.WARNING,
        f"{chains + listeners:.0f} older filter chains still have connections",
        "clients that never close keep the rules of before until Envoy's drain time is over",
    )
