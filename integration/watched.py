"""A mesh that follows an API server, and `weir serve --manage-envoyfilters` at work on it.

istiod's stand-in has the EnvoyFilters that the API server has, and the Service's HTTPRoute where
there is one. What is the operator's to do is done when the status asks for it, by the very command
that it names.

Removal waits 2 s between its steps instead of 60, as connections drain within 1 s here instead of
45.
"""

import asyncio
import json
import re
from contextlib import AsyncExitStack, asynccontextmanager
from typing import NamedTuple

import aiohttp
import yaml

from integration.mesh import SHAPES, mesh
from integration.mesh.istiod import DATA, XDS
from integration.wiring import answer, unwired, version, with_asked_for
from tests.xds.apiserver import ApiServer
from tests.xds.operators_cluster import KINDS
from weir.bench.apiserver import failed, kubeconfig
from weir.processes import start, weir
from xds.sources import kinds

SETTLE_SECONDS, DRAIN_SECONDS = 2, 1
PRINTED_BY = re.compile(r"`weir (istio manifests [^`]+)` prints it")
GOES_FIRST = re.compile(r"kubectl delete (\w+) -n (\S+) (\S+)")
SECOND = "llm-weir"


def collection(kind):
    return f"{kind.plural}.{kind.group}"


class Change(NamedTuple):
    """Of an EnvoyFilter: "ADDED", "MODIFIED" or "DELETED", its name, and the step it belongs to."""

    what: str
    name: str
    step: int


class Replica:
    """One `weir serve`, to be killed, paused and started anew."""

    def __init__(self, name, address, directory):
        self.name, self.address = name, address
        self.child = None
        self._directory = directory
        self._starts = 0

    @property
    def status(self):
        return f"{self.address}:15011"

    async def start(self, api, shape, peers, listen=None):
        """`peers` are the status ports of all; proxies do not know of `listen`."""
        self._starts += 1
        config = self._directory / f"{self.name}.kubeconfig"
        command = weir(
            *("serve", "--kubernetes", "--kubeconfig"),
            *(str(kubeconfig(config, api.url, token=self.name)), "--plaintext"),
            *("--listen", listen or f"{self.address}:15010", "--status", self.status),
            *("--istio-domain", "cluster.local", "--manage-envoyfilters"),
            *("--istio-version", version(shape), "--settle-seconds", str(SETTLE_SECONDS)),
            *("--replica", self.name, *(f"--peer={each}" for each in peers)),
        )
        log = self._directory / f"{self.name}-{self._starts}.log"  # it is waited for
        self.child = await start(self.name, command, log)
        await self.child.until_logged("serving")

    async def stop(self):
        if self.child is not None:
            await self.child.stop()

    async def get(self, path):
        """JSON; nothing where there is no answer."""
        patience = aiohttp.ClientTimeout(total=1)
        try:
            async with (
                aiohttp.ClientSession(timeout=patience) as client,
                client.get(f"http://{self.status}{path}") as response,
            ):
                return await response.json()
        except (aiohttp.ClientError, TimeoutError):
            return None

    async def wiring(self):
        status = await self.get("/status")
        return status and status["wiring"]


class Api(ApiServer):
    """Who writes EnvoyFilters is known by the token.

    `before(who, method, name)` is awaited before one is written; it may return a status, and then
    nothing is.
    """

    def __init__(self):
        super().__init__(map(collection, (*kinds.ALWAYS, *kinds.ISTIO)))
        self.collections.add("events.")
        self.before = None
        self.writers = []

    async def _write(self, request):
        _, plural, name = request.path.rsplit("/", 2)
        if plural == kinds.ENVOY_FILTER.plural:
            who = request.headers["Authorization"].removeprefix("Bearer ")
            refusal = await self.before(who, request.method, name) if self.before else None
            if refusal is not None:
                return failed(refusal, "no: somebody said so")
            self.writers.append(who)
        return await super()._write(request)


class Watched:
    """The API server, the mesh that follows it, and replicas of Weir by name."""

    def __init__(self, made, api, replicas):
        self.mesh, self.api = made, api
        self.replicas = {each.name: each for each in replicas}
        self._asked_at = 0

    def put(self, documents):
        for each in documents:
            if (kind := KINDS.get(each["kind"])) is not None:
                self.api.store.put(collection(kind), each)

    def annotate(self, shape=None):
        """The pool asks for a shape, or no more."""
        self._asked_at = self.api.store.revision
        pool = self.api.store.objects[collection(kinds.POOL), "ns", "llm-pool"]
        said = {} if shape is None else {"weir.dev/shape": shape}
        self.put([pool | {"metadata": pool["metadata"] | {"annotations": said}}])

    def _objects(self, kind):
        objects = self.api.store.objects.items()
        return {name: each for (where, _, name), each in objects if where == collection(kind)}

    @property
    def filters(self):
        """What EnvoyFilters there are: the step of each, by name."""
        return {name: _step(each) for name, each in self._objects(kinds.ENVOY_FILTER).items()}

    @property
    def routed(self):
        """Whether the Service has an HTTPRoute."""
        routes = self._objects(kinds.ROUTE).values()
        return any(each["spec"]["parentRefs"][0].get("kind") == "Service" for each in routes)

    @property
    def changes(self):
        """Of EnvoyFilters, since the pool's annotation was put or taken."""
        where = collection(kinds.ENVOY_FILTER)
        news = [each for each in self.api.store.since(self._asked_at) if each.collection == where]
        items = [json.loads(each.text) for each in news]
        return [
            Change(each.kind, item["metadata"]["name"], _step(item))
            for each, item in zip(news, items, strict=True)
        ]

    async def start(self, name, listen=None):
        peers = [each.status for each in self.replicas.values()]
        await self.replicas[name].start(self.api, self.mesh.shape.name, peers, listen)

    async def ready(self, *names):
        """Weir's Service leads to these; a stream that is open stays where it is."""
        await self.mesh.istiod.ready(XDS, [self.replicas[name].address for name in names])

    async def acting(self):
        """Who says that it acts."""
        said = {name: await each.wiring() for name, each in self.replicas.items()}
        return [name for name, wiring in said.items() if wiring and wiring["acting"]]

    async def acts(self, name, seconds=60):
        """Until this one acts, and no other."""
        async with asyncio.timeout(seconds):
            while await self.acting() != [name]:
                await asyncio.sleep(0.1)

    async def places(self):
        """As the replica that acts has them; nothing where none does."""
        for each in self.replicas.values():
            if (wiring := await each.wiring()) and wiring["acting"]:
                return wiring["places"]
        return None

    async def until(self, condition, seconds=60):
        async with asyncio.timeout(seconds):
            while not condition():
                await asyncio.sleep(0.05)

    async def until_told(self, condition, seconds=60):
        """Until the status is so; what it says of places."""
        async with asyncio.timeout(seconds):
            while (places := await self.places()) is None or not condition(places):
                await asyncio.sleep(0.1)
        return places

    async def wired(self):
        """Until the status says so; the operator does what it asks for."""

        def done(places):
            for each in places:
                self.obey(each["says"])
            return [each["done"] for each in places] == [True]

        await self.until_told(done)

    async def unwired(self):
        await self.until_told(lambda places: places == [] and not self.filters)

    def obey(self, says):
        """Do what is the operator's, if the status asks for something."""
        if first := GOES_FIRST.search(says):
            kind, namespace, name = first.groups()
            (kind,) = (each for each in KINDS.values() if each.name.lower() == kind)
            if name in self._objects(kind):
                self.api.store.delete(collection(kind), name, namespace)
        elif printed_by := PRINTED_BY.search(says):
            have = self.mesh.directory / "have"
            have.mkdir(exist_ok=True)
            objects = json.loads(json.dumps([*self.api.store.objects.values()]))
            (have / "objects.yaml").write_text(yaml.safe_dump_all(objects))
            printed = answer(printed_by[1].split(), have, self.mesh.shape.name)
            self.put(
                each
                for each in printed
                if each["kind"] != "EnvoyFilter"
                and each["metadata"]["name"] not in self._objects(KINDS[each["kind"]])
            )

    async def follow(self):
        """istiod, which watches EnvoyFilters and HTTPRoutes, and pushes."""
        seen = None
        while True:
            filters, shape = self._objects(kinds.ENVOY_FILTER), self.mesh.shape
            start = shape.start if self.routed else unwired(shape)
            there = start, json.dumps(filters)
            if there != seen:
                await self.mesh.apply([*json.loads(there[1]).values()], start=start)
            seen = there
            await asyncio.sleep(0.05)


def _step(item):
    return int(item["metadata"]["annotations"]["weir.dev/step"])


@asynccontextmanager
async def watched(tmp_path, shape, *, count=1, listen=None):
    """The shape's mesh with so many replicas at work; proxies do not know of `listen`."""
    shape = SHAPES[shape]
    async with (
        mesh(
            tmp_path, shape, [], start=unwired(shape), drain_seconds=DRAIN_SECONDS, weir=False
        ) as made,
        AsyncExitStack() as stack,
    ):
        places = [made.places(2, number + 1) for number in range(count)]
        replicas = [Replica(f"weir-{n}", each, tmp_path) for n, each in enumerate(places)]
        there = Watched(made, Api(), replicas)
        there.put(objects(made))
        await made.apply(
            edit=lambda it: with_asked_for(it, made.shape, made.filters, made.places.move)
        )
        await there.api.start()
        stack.push_async_callback(there.api.stop)
        for each in replicas:
            stack.push_async_callback(each.stop)
        await asyncio.gather(*(there.start(name, listen) for name in there.replicas))
        async with asyncio.TaskGroup() as tasks:
            following = tasks.create_task(there.follow())
            yield there
            following.cancel()


def objects(made):
    """What the operator has: the proxy's Pod named as its node says, and unequal capacities.

    A second Service he is asked for.
    """
    text = (DATA / "kubernetes.yaml").read_text().replace("name: gw-0", "name: inference-gateway-0")
    for each in made.pods.objects(made.places, text):
        kind, metadata = each["kind"], each["metadata"]
        if (kind, metadata["name"]) == ("Pod", "llm-1"):
            metadata["annotations"] = {"weir.dev/capacity": "3"}
        if (kind, metadata["name"]) != ("Service", SECOND):
            yield each
