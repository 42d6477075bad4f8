"""The mesh as a whole: one proxy of one shape, and all that is around it."""

import re
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from integration.envoyfilter import Kind, Silence
from integration.mesh.envoy import Envoy, bootstrap_of_proxy
from integration.mesh.istiod import DATA, SHAPES, Istiod, Shape, capture
from integration.mesh.places import CAPTURE, GATEWAY, Places, claimed
from integration.mesh.pods import Pods
from integration.mesh.relay import Relay
from integration.mesh.secrets import Agent, spiffe
from integration.mesh.traffic import KEY, Traffic
from integration.mesh.weir import ControlPlane, RealPicker, SteeredPicker
from integration.mesh.ztunnel import FarEnd
from integration.mesh.ztunnel import bootstrap as bootstrap_of_ztunnel
from tests.certificates import Authority
from weir.stack import wait_until

ACCOUNTS = {Kind.WAYPOINT: "waypoint", Kind.GATEWAY: "inference-gateway-istio"}


class IdlePatchError(AssertionError):
    """A patch changed nothing: the shape is not what its author thinks."""


@dataclass(slots=True)
class Mesh:
    """Everything that a test may look at, steer, break and start again."""

    shape: Shape
    places: Places
    directory: Path
    agent: Agent
    istiod: Istiod | Relay
    proxy: Envoy
    ztunnel: Envoy
    far: FarEnd
    weir: ControlPlane
    picker: SteeredPicker | RealPicker | None
    pods: Pods
    traffic: Traffic
    filters: list[Any] = field(default_factory=list)
    start: str = ""
    edit: Any = None

    @property
    def identity(self):
        """The SPIFFE id of the waypoint or gateway."""
        return spiffe(ACCOUNTS[self.shape.proxy.kind])

    async def apply(self, filters=None, *, start=None, edit=None, idle=False):
        """These EnvoyFilters from now on, and this folder of `unpatched/`; None leaves as it is.

        `edit` changes what istiod generates before the filters get it: a Configuration to another.
        Returns when the proxy has answered for it. Raises `IdlePatchError` where a patch changes
        nothing, unless that is expected (`idle`), and `AssertionError` where the proxy refuses.
        """
        self.filters = self.filters if filters is None else list(filters)
        self.start, self.edit = start or self.start, edit or self.edit
        silences = await self.istiod.apply(self.filters, start=self.start, edit=self.edit)
        if silences and not idle:
            raise IdlePatchError("\n".join(map(_say, silences)))
        if self.proxy.running:
            await self.settled()
        return silences

    async def settled(self):
        """Wait until the proxy has accepted all that istiod sent it."""
        await self.istiod.settled()
        assert self.istiod.refusals == {}, self.istiod.refusals

    async def drained(self, seconds=60):
        """Wait until no connection is on a filter chain that was replaced."""

        async def are():
            name = "listener_manager.total_filter_chains_draining"
            return (await self.proxy.stats(f"^{name}$"))[name] == 0

        await wait_until(are, seconds=seconds)

    async def weighs(self, *weights, cluster=None, times=1, seconds=15):
        """Give the Pods these weights, and wait until the proxy has them, so many `times`.

        `weir serve` makes hundreds of what it is told.
        """
        self.weir.set(self.named(*weights))
        await self.has(*(times * each for each in weights), cluster=cluster, seconds=seconds)

    async def has(self, *weights, cluster=None, seconds=15):
        """Wait until the proxy has just these weights for the Pods."""
        await self.proxy.has(cluster or self.shape.cluster, self.named(*weights), seconds)

    async def stat(self, name, cluster=None):
        """A counter or gauge of a cluster, under the name that its statistics have."""
        cluster = cluster or self.shape.cluster
        for each in self.istiod.configuration.clusters:
            if each["name"] == cluster:
                key = f"cluster.{each.get('alt_stat_name', cluster)}.{name}"
                return (await self.proxy.stats(f"{re.escape(key)}$")).get(key, 0)
        raise LookupError(f"the proxy was given no cluster {cluster}")

    def named(self, *weights):
        return dict(zip((pod.endpoint for pod in self.pods.values()), weights, strict=True))


def _say(silence: Silence):
    return f"EnvoyFilter {silence.filter}, patch {silence.patch} changed nothing: {silence.why}"


@asynccontextmanager
async def mesh(
    directory,
    shape,
    filters=None,
    *,
    start=None,
    edit=None,
    weights=(1, 3),
    weir=True,
    proxy=True,
    picker="steered",
    program=False,
    key_header=KEY,
    drain_seconds=45,
    captured=(),
    octet=None,
    istiod=None,
):
    """Run one shape until the block ends, as many Pods as there are `weights`.

    `filters`     EnvoyFilters (documents); the stand-ins of istiod's data where None
    `start`       the folder of `istiod/unpatched/` that they go onto; the shape's own where None
    `edit`        what changes istiod's own output first, as in `Mesh.apply`
    `weir`        whether Weir's control plane is there when the proxy starts
    `proxy`       whether the proxy is started, and waited for
    `picker`      "steered" by the test, "real" for `weir picker`, None for nobody at its address
    `program`     the control plane is `weir serve` and not a replica with the test's weights
    `key_header`  what the client gives its affinity keys in
    `captured`    what of Weir ztunnel has captured too: "xds", "picker"
    `drain_seconds`  how long connections may stay on filter chains that were replaced; Istio's 45
    `octet`       127.<octet>.0.0/16; a free one where None
    `istiod`      made of `Places`, what configures the proxy instead of the stand-in; `filters`,
                  `start` and `edit` are then nobody's
    """
    shape = SHAPES[shape] if isinstance(shape, str) else shape
    filters = shape.filters if filters is None else filters
    async with AsyncExitStack() as stack:
        places = stack.enter_context(claimed(octet))
        client = await stack.enter_async_context(aiohttp.ClientSession())
        made = _made(
            directory,
            shape,
            places,
            client,
            count=len(weights),
            drain_seconds=drain_seconds,
            program=program,
            key_header=key_header,
            captured=captured,
        )
        made.picker = _picker(picker, places, directory)
        if istiod is not None:
            made.istiod = istiod(places)
        await stack.enter_async_context(made.pods.running())
        await stack.enter_async_context(made.traffic.running())
        for part in (made.agent, made.istiod, made.weir, made.picker, made.ztunnel, made.proxy):
            if part is not None:
                stack.push_async_callback(part.stop)
        made.weir.set(made.named(*weights))
        if istiod is None:
            await made.apply(filters, start=start or shape.start, edit=edit)
        for part in (made.agent, made.istiod, weir and made.weir, made.picker, made.ztunnel):
            if part:
                await part.start()
        if proxy:
            await made.proxy.start()
            await made.settled()
        yield made


def _made(directory, shape, places, client, *, count, drain_seconds, program, key_header, captured):
    """All parts, none of them started."""
    kind, account = shape.proxy.kind, ACCOUNTS[shape.proxy.kind]
    pods = Pods.of(places, count)
    authority = Authority(directory / "certificates")
    far = FarEnd(directory / "far.log")
    ours = [{"xds": places.xds, "picker": places.picker}[each] for each in captured]
    tunnelled = [*ours, *(pod.endpoint for pod in pods.values() if pod.captured)]
    objects = pods.objects(places, (DATA / "kubernetes.yaml").read_text())
    front = f"{places.gateway}:{GATEWAY}"
    if kind is Kind.WAYPOINT:
        front = f"{places.ztunnel}:{CAPTURE}"
    documents = {
        "proxy": bootstrap_of_proxy(shape.proxy, places, account),
        "ztunnel": bootstrap_of_ztunnel(places, tunnelled, authority, far.path),
    }
    return Mesh(
        shape=shape,
        places=places,
        directory=directory,
        agent=Agent(authority, account, places),
        istiod=Istiod(
            shape.proxy, places, lambda each: capture(pods.endpoints(places, each), ours)
        ),
        **{
            name: Envoy(name, each, directory, client, drain_seconds)
            for name, each in documents.items()
        },
        far=far,
        weir=ControlPlane(places, directory, objects, program=program),
        picker=None,
        pods=pods,
        traffic=Traffic(f"http://{front}", key_header),
    )


def _picker(which, places, directory):
    match which:
        case "steered":
            return SteeredPicker(places)
        case "real":
            return RealPicker(places, directory)
        case None:
            return None
    raise ValueError(f"picker: 'steered', 'real' or None, not {which!r}")
