"""What the control plane as a program writes into a cluster."""

from tests.xds.istio.wired import SHADOW
from tests.xds.operators_cluster import STEPS, Api, acknowledge, control_plane, gateway, serving
from tests.xds.talk import until
from weir.bench.apiserver import kubeconfig
from xds.operators import CONTROLLER

POOLS, EVENTS = "inferencepools.inference.networking.k8s.io", "events."
PLACE = 'gateway="ns/inference-gateway",pool="ns/llm-pool"'


class Told(Api):
    """That takes Events."""

    def __init__(self, *documents):
        super().__init__(*documents)
        self.collections.add(EVENTS)

    def events(self):
        return [each for key, each in self.store.objects.items() if key[0] == EVENTS]

    def conditions(self):
        """Ours of the pool: status and reason, by type."""
        status = self.store.objects[POOLS, "ns", "llm-pool"].get("status", {})
        return {
            condition["type"]: (condition["status"], condition["reason"])
            for each in status.get("parents", ())
            if each["controllerName"] == CONTROLLER
            for condition in each["conditions"]
        }


async def get(http, path):
    async with http.get(path) as response:
        return await (response.text() if path == "/metrics" else response.json())


async def test_a_pool_that_asks_is_wired_once_its_proxy_has_the_assignment(tmp_path):
    async with (
        serving(Told(*gateway(shape="auto"))) as api,
        control_plane(kubeconfig(tmp_path / "kubeconfig", api.url)) as (channel, http),
    ):
        await until(lambda: api.conditions().get("weir.dev/Wired") == ("False", "NotWired"))
        await until(lambda: [each["reason"] for each in api.events()].count("NotWired") == 1)
        (event,) = [each for each in api.events() if each["reason"] == "NotWired"]
        assert "1 of 1 proxies of Gateway ns/inference-gateway" in event["message"]
        assert f"weir_wiring_done{{{PLACE}}} 0.0" in await get(http, "/metrics")
        assert (await get(http, "/status"))["faults"][-1]["reason"] == "NotWired"

        streams = await acknowledge(channel)
        await until(lambda: api.filters() == STEPS)
        assert (await get(http, "/acknowledged")) == {
            "replica": "weir-0",
            "able": True,
            "acknowledged": {"ns/gw-0": [SHADOW, SHADOW]},
        }
        await until(lambda: api.conditions().get("weir.dev/Wired") == ("True", "InPlace"))
        wiring = (await get(http, "/status"))["wiring"]
        (place,) = wiring["places"]
        assert (place["shape"], place["done"], wiring["acting"]) == ("gateway", True, True)
        metrics = await get(http, "/metrics")
        assert f"weir_wiring_done{{{PLACE}}} 1.0" in metrics
        assert "weir_wiring_acting 1.0" in metrics

        api.put(*gateway())
        await until(lambda: api.filters() == [])
        await until(lambda: "weir.dev/Wired" not in api.conditions())
        for stream in streams:
            stream.cancel()


async def test_without_the_flag_a_pool_that_asks_is_told_that_nobody_listens(tmp_path):
    async with (
        serving(Told(*gateway(shape="auto"))) as api,
        control_plane(kubeconfig(tmp_path / "kubeconfig", api.url), manage=False) as (_, http),
    ):
        await until(lambda: "weir.dev/AnnotationsInEffect" in api.conditions())
        assert api.conditions() == {
            "Accepted": ("True", "Accepted"),
            "weir.dev/AnnotationsInEffect": ("False", "NotInEffect"),
        }
        await until(lambda: "NotInEffect" in [each["reason"] for each in api.events()])
        (event,) = [each for each in api.events() if each["reason"] == "NotInEffect"]
        assert "without `weir serve --manage-envoyfilters`" in event["message"]
        assert api.filters() == []
        assert (await get(http, "/status"))["wiring"] is None
        assert not (await get(http, "/acknowledged"))["able"]


async def test_where_no_status_is_to_be_written_pools_are_wired_and_no_more_is_written(tmp_path):
    config = tmp_path / "kubeconfig"
    async with (
        serving(Told(*gateway(shape="auto", mode="fast"))) as api,
        control_plane(kubeconfig(config, api.url), write_status=False) as (channel, http),
    ):
        streams = await acknowledge(channel)
        await until(lambda: api.filters() == STEPS)
        faults = (await get(http, "/status"))["faults"]
        assert "BadValue" in [each["reason"] for each in faults]
        assert [path for _, path in api.writes if "/envoyfilters" not in path] == []
        for stream in streams:
            stream.cancel()
