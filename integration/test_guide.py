"""What docs/istio.md promises beyond the shapes themselves: its example, and the way back."""

import asyncio
import json
from dataclasses import replace

import pytest
import yaml

from integration.mesh import SHAPES, mesh
from integration.mesh.istiod import POOL
from integration.test_shapes import EXT_PROC
from integration.wiring import answer, printed
from tests.manifests.objects import ROOT

EXAMPLES = ROOT / "docs/examples/istio"
# The example's objects, by the names that istiod's data has them under.
NAMES = {"InferencePool": "llm-pool", "Service": "llm", "HTTPRoute": "llm-route"}
PICKER = "outbound|9002||llm-epp.ns.svc.cluster.local"
NOWHERE = "outbound|9002||nowhere.ns.svc.cluster.local"


def renamed(text):
    for each in yaml.safe_load_all(text):
        kind, metadata, spec = each["kind"], each["metadata"], each.get("spec", {})
        if kind not in {*NAMES, "Gateway"}:
            continue
        metadata["namespace"] = "ns"
        metadata["name"] = NAMES.get(kind, metadata["name"])
        if kind == "InferencePool":
            spec["selector"] = {"matchLabels": {"app": "llm"}}
        if kind == "Service":
            spec["selector"] = {"app": "llm"}
        for rule in spec.get("rules", ()):
            for backend in rule["backendRefs"]:
                backend["name"] = NAMES[backend["kind"]]
        yield each


@pytest.mark.parametrize("shape", SHAPES)
def test_the_guides_example_is_wired_by_the_very_filters_that_are_run_here(tmp_path, shape):
    files = ["model-servers", "pool", *(["gateway"] if shape.startswith("gateway") else [])]
    example = tmp_path / "example"
    example.mkdir()
    documents = [
        each for name in files for each in renamed((EXAMPLES / f"{name}.yaml").read_text())
    ]
    (example / "objects.yaml").write_text(yaml.safe_dump_all(documents))
    command = ["istio", "manifests", "ns/llm-pool", "--shape", shape]
    command += ["--picker", "llm-epp.ns.svc.cluster.local:9002"]
    documents = answer(command, example, shape)
    filters = [each for each in documents if each["kind"] == "EnvoyFilter"]
    assert filters == printed(shape, tmp_path)


async def test_a_gateway_whose_pool_names_a_picker_that_is_nowhere_loses_nothing(tmp_path):
    """Before the patches, with them, and when they are gone."""

    def nowhere(configuration):
        routes = json.loads(json.dumps(configuration.routes).replace(PICKER, NOWHERE))
        assert routes != configuration.routes
        return replace(configuration, routes=routes)

    first, last = (printed("gateway", tmp_path, step=number) for number in (1, 2))
    async with mesh(tmp_path, "gateway", [], edit=nowhere, drain_seconds=2) as made:
        async with made.traffic.under_load() as load:
            await made.traffic.served(40)
            await made.apply(first)
            await made.has(1, 3)
            await made.apply([*first, *last])
            await made.traffic.served(40)
            await made.apply(first)
            await asyncio.sleep(3)  # connections drain
            await made.apply([])
            await made.traffic.served(40)
        assert load.failures == {}


async def test_a_route_that_leaves_the_pool_loses_nothing_while_another_keeps_the_cluster(tmp_path):
    """Without a patch of ours. Where Istio takes the cluster away at once, a few get 500."""

    def turned(configuration):
        for host in configuration.routes[0]["virtual_hosts"]:
            for route in host["routes"]:
                if route["route"].get("cluster") == POOL:
                    route["route"]["cluster"] = "outbound|8000||llm.ns.svc.cluster.local"
                    del route["typed_per_filter_config"][EXT_PROC]
        return configuration

    async with mesh(tmp_path, "gateway", []) as made:
        async with made.traffic.under_load(rate=100) as load:
            await asyncio.sleep(0.5)
            await made.apply(edit=turned)
            await asyncio.sleep(0.5)
        assert load.failures == {}
        assert await made.stat("upstream_rq_total", "outbound|8000||llm.ns.svc.cluster.local") > 20
