"""Checks of what happens: looks with traffic in between. Pure.

Who was picked and who served is known as sums, from one look to the next. Where a picker and a
proxy that ignores it both spread requests evenly, sums agree too. So agreement counts only if it
would hardly have come about by chance. What a proxy does that ignores picks is not known: it may
throw dice by the endpoints' weights, or take turns, or each of its workers may, which is between
these, or send what is alike to one place, a round of probes then. What agrees best counts. So picks
that are as even as turns prove nothing, however many; rounds of few requests, which are hardly ever
that even, tell more than one of many.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from random import Random
from typing import TypeAlias

from weir.doctor.finding import Finding, Sight, Verdict
from weir.doctor.proxy import Asking, EdsCluster, Proxy
from xds.pool import EndpointId

HONOURED = 0.98  # of picks, for what is under way when we look
CHANCE = 0.05  # above it agreement proves nothing
DRAWS = 500
MANY = 500  # requests of a round; above it dice are summed up
SPREADS = (*(0.5**n for n in range(7)), 0.0)  # how uneven, beside dice; 0 takes turns
TIMES = (2, 4, 8, 16, 32, 64)  # as many requests as we saw

_Round: TypeAlias = tuple[Mapping[EndpointId, int], Mapping[EndpointId, int]]  # picked, served


def picker(
    askings: Sequence[Asking], ours: Sequence[EdsCluster], before: Proxy, after: Proxy
) -> Finding:
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


def _served(ours: Sequence[EdsCluster], before: Proxy, after: Proxy) -> dict[EndpointId, int]:
    found: dict[EndpointId, int] = {}
    for cluster in ours:
        old = before.clusters.get(cluster.name)
        for name, host in after.clusters[cluster.name].hosts.items():
            had = old.hosts[name].served if old is not None and name in old.hosts else 0
            found[name] = found.get(name, 0) + max(0, host.served - had)
    return found


def honoured(
    pool: str, ours: Sequence[EdsCluster], sights: Sequence[Sight], rng: Random
) -> Finding:
    """`sights` are looks with a round of traffic between each and the next."""
    rounds = [
        (_picked(pool, *pair), _served(ours, pair[0].proxy, pair[1].proxy))
        for pair in pairwise(sights)
    ]
    total = sum(sum(picked.values()) for picked, _ in rounds)
    sent = sum(sum(served.values()) for _, served in rounds)
    if not total or not sent:
        return Finding(
            "honoured",
            Verdict.UNKNOWN,
            f"{total} picks and {sent} requests while we looked",
            "look while there is traffic, or give --probe URL; only Weir's pickers report picks, "
            "and only to a control plane that answers",
        )
    agreed = sum(_agreed(picked, served) for picked, served in rounds)
    if agreed < HONOURED * max(total, sent):
        return _not_honoured(agreed, total, sent)
    shares = _shares(ours)
    if len(shares) > 1 and (chance := _chance(rounds, shares, agreed, rng)) > CHANCE:
        times = _enough(rounds, shares, agreed, rng)
        wanted = f"some {times * sent}" if times else "no number of"
        return Finding(
            "honoured",
            Verdict.UNKNOWN,
            f"{agreed} of {sent} served where they were picked, which may be chance: a proxy that "
            f"ignores picks does as well {chance:.0%} of the time; {wanted} requests spread like "
            "these would tell",
            "give --probe URL, at a quiet time: its requests come in small rounds, or look again",
        )
    return Finding("honoured", Verdict.OK, f"{agreed} of {sent} served where they were picked")


def _not_honoured(agreed: int, total: int, sent: int) -> Finding:
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


def _picked(pool: str, before: Sight, after: Sight) -> dict[EndpointId, int]:
    earlier = before.picks(pool)
    grown = {name: count - earlier.get(name, 0) for name, count in after.picks(pool).items()}
    return {name: count for name, count in grown.items() if count > 0}


def _agreed(picked: Mapping[EndpointId, int], served: Mapping[EndpointId, int]) -> int:
    return sum(min(count, served.get(name, 0)) for name, count in picked.items())


def _shares(clusters: Sequence[EdsCluster]) -> dict[EndpointId, float]:
    """Of requests, by endpoint, if nobody picks: by weight, of who is of the first priority."""
    found: dict[EndpointId, float] = {}
    for cluster in clusters:
        first = min((host.priority for host in cluster.hosts.values()), default=0)
        for name, host in cluster.hosts.items():
            if host.priority == first:
                found[name] = found.get(name, 0.0) + host.weight
    total = sum(found.values())
    return {name: weight / total for name, weight in found.items()}


def _chance(
    rounds: Sequence[_Round], shares: Mapping[EndpointId, float], agreed: int, rng: Random
) -> float:
    """How likely requests that nobody steers agree with the picks at least as well."""
    lucky = Counter(dict.fromkeys(SPREADS, 0))
    for _ in range(DRAWS):
        dice = [_throw(sum(served.values()), shares, rng) for _, served in rounds]
        for spread in SPREADS:
            served = _evened(dice, shares, spread, rng)
            agree = sum(
                _agreed(picked, each) for (picked, _), each in zip(rounds, served, strict=True)
            )
            lucky[spread] += agree >= agreed
    return max(*(count / DRAWS for count in lucky.values()), _alike(rounds, shares, agreed))


def _alike(rounds: Sequence[_Round], shares: Mapping[EndpointId, float], agreed: int) -> float:
    """The same, where each round goes to one place."""
    likely = {0: 1.0}  # by how many agree
    for picked, _ in rounds:
        before, likely = likely, {}
        for agree, chance in before.items():
            for name, share in shares.items():
                more = agree + picked.get(name, 0)
                likely[more] = likely.get(more, 0.0) + chance * share
    return sum(chance for agree, chance in likely.items() if agree >= agreed)


def _enough(
    rounds: Sequence[_Round], shares: Mapping[EndpointId, float], agreed: int, rng: Random
) -> int | None:
    """How many times as many requests, in the same proportions, would not be chance."""
    for times in TIMES:
        more = [(_scaled(picked, times), _scaled(served, times)) for picked, served in rounds]
        if _chance(more, shares, times * agreed, rng) <= CHANCE:
            return times
    return None


def _scaled(counts: Mapping[EndpointId, int], times: int) -> dict[EndpointId, int]:
    return {name: times * count for name, count in counts.items()}


def _throw(count: int, shares: Mapping[EndpointId, float], rng: Random) -> Mapping[EndpointId, int]:
    """Dice, by shares."""
    if count <= MANY:
        return Counter(rng.choices(list(shares), list(shares.values()), k=count))
    thrown, left = {}, 1.0
    for name, share in shares.items():
        part = min(1.0, share / left) if left > 0 else 1.0
        spread = (count * part * (1 - part)) ** 0.5
        thrown[name] = max(0, min(count, round(rng.gauss(count * part, spread))))
        count, left = count - thrown[name], left - share
    return thrown


def _evened(
    dice: Iterable[Mapping[EndpointId, int]],
    shares: Mapping[EndpointId, float],
    spread: float,
    rng: Random,
) -> Iterator[Mapping[EndpointId, int]]:
    """As many requests a round, nearer to the shares; whose turn it is goes on in the next."""
    names = rng.sample(list(shares), len(shares))
    owed = dict.fromkeys(names, 0.0)
    for thrown in dice:
        count = sum(thrown.values())
        for name in names:
            owed[name] += spread * thrown.get(name, 0) + (1 - spread) * shares[name] * count
        served = {name: max(0, int(owed[name])) for name in names}
        left = max(0, count - sum(served.values()))
        for name in sorted(names, key=lambda name: served[name] - owed[name])[:left]:
            served[name] += 1
        for name in names:
            owed[name] -= served[name]
        yield served


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
