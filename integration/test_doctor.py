"""`weir doctor` on a running Envoy: it says well when all is well, and finds what was broken."""

import asyncio
import json
from contextlib import asynccontextmanager

import pytest

from integration.mesh import SHAPES, mesh
from integration.mesh.weir import SteeredPicker
from integration.wiring import printed
from picker.reports import report
from weir.bench import manifests
from weir.bench.picker import servers, session
from weir.processes import weir
from weir.stack import stack

EXT_PROC = "envoy.filters.http.ext_proc"
CORS = {"@type": "type.googleapis.com/envoy.extensions.filters.http.cors.v3.CorsPolicy"}


async def doctor(pool, status, envoy, *options):
    command = weir("doctor", pool, "--status", status, "--envoy", envoy, "--json", *options)
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    out, _ = await process.communicate()
    return process.returncode, {row["check"]: row for row in json.loads(out)}


async def test_it_proves_that_picks_are_honoured_and_finds_what_died(tmp_path):
    async with session() as client, servers(tmp_path, count=3) as endpoints:
        manifests.write(tmp_path / "config", endpoints)
        async with stack(tmp_path, client) as parts:
            places = f"127.0.0.1:{parts.status_port}", f"127.0.0.1:{parts.envoy_admin}"

            async def look(*options):
                return await doctor("bench/pool", *places, *options)

            status, rows = await look("--probe", parts.url())
            assert (status, {row["verdict"] for row in rows.values()}) == (0, {"ok"})
            assert "20 of 20" in rows["honoured"]["seen"]
            status, rows = await look("--watch", "0.1")
            assert (status, rows["honoured"]["verdict"]) == (3, "unknown")
            await parts.children["picker"].kill()
            status, rows = await look("--probe", parts.url())
            assert (status, rows["picker"]["verdict"]) == (1, "wrong")
            assert "20 went on unanswered" in rows["picker"]["seen"]
            await parts.children["serve"].kill()
            status, rows = await look("--probe", parts.url())
            assert (status, rows["answering"]["verdict"]) == (1, "wrong")
            assert rows["endpoints"]["verdict"] == "unknown"


@asynccontextmanager
async def shape(directory, name="gateway", filters=None, **options):
    """A shape with all of Weir's programs."""
    filters = printed(name, directory) if filters is None else filters
    options = {"picker": "real", "program": True, "weights": (1, 1), **options}
    async with mesh(directory, name, filters, **options) as made:
        await made.has(100, 100)
        yield made


async def seen(made, *options):
    """Status and rows of the doctor, who sends 20 probes."""
    places = f"{made.places.weir}:15011", made.proxy.admin
    url = f"{made.traffic.url}/v1/completions"
    return await doctor("ns/llm-pool", *places, "--probe", url, *options)


def wrongs(rows):
    return {name for name, row in rows.items() if row["verdict"] != "ok"}


@pytest.mark.parametrize("name", SHAPES)
async def test_every_shape_is_well(tmp_path, name):
    async with shape(tmp_path, name) as made:
        status, rows = await seen(made)
        assert (status, wrongs(rows)) == (0, set()), rows
        assert "20 of 20" in rows["honoured"]["seen"]


async def test_a_filter_without_the_twin_is_found(tmp_path):
    filters = printed("gateway", tmp_path)
    for each in filters:
        each["spec"]["configPatches"] = [
            patch
            for patch in each["spec"]["configPatches"]
            if not patch["patch"]["value"].get("name", "").startswith("weir-twin|")
        ]
    async with shape(tmp_path, filters=filters) as made:
        status, rows = await seen(made)
        assert (status, wrongs(rows)) == (1, {"twin"})


async def test_a_route_that_lost_its_picker_is_found_with_its_cause(tmp_path):
    """The second step was forgotten, and a CORS filter made Istio drop its own override."""

    def lost(configuration):
        for table in configuration.routes:
            for host in table["virtual_hosts"]:
                for route in host["routes"]:
                    if "typed_per_filter_config" in route:
                        route["typed_per_filter_config"] = {"envoy.filters.http.cors": CORS}
        return configuration

    filters = printed("gateway", tmp_path, step=1)
    async with shape(tmp_path, filters=filters, edit=lost) as made:
        status, rows = await seen(made)
        assert (status, wrongs(rows)) == (1, {"route"})
        assert "envoy.filters.http.cors made Istio drop it" in rows["route"]["seen"]


@pytest.mark.parametrize("name", ["gateway", "waypoint-own-cluster"])
async def test_a_dead_control_plane_and_a_proxy_that_lives_on_its_twins_copy_are_found(
    tmp_path, name
):
    async with shape(tmp_path, name) as made:
        await made.weir.kill()
        status, rows = await seen(made)
        assert (status, rows["answering"]["verdict"]) == (1, "wrong")
        assert rows["endpoints"]["verdict"] == "unknown", "Weir's last, which it cannot know"
        assert rows["picker"]["verdict"] == "ok"
        await made.proxy.stop()
        await made.proxy.start()
        await made.has(1, 1)
        status, rows = await seen(made)
        assert (status, rows["endpoints"]["verdict"]) == (1, "wrong")
        assert "lives on its twin's copy" in rows["endpoints"]["seen"]
        await made.weir.start()
        await made.has(100, 100)
        status, rows = await seen(made)
        assert rows["endpoints"]["verdict"] == "ok"


async def test_picks_of_captured_pods_by_their_plain_address_are_found_to_be_ignored(tmp_path):
    """A picker that reports what it picked, and does not know the form that Envoy has of it."""
    async with shape(tmp_path, picker=None) as made:
        picker = SteeredPicker(made.places)
        await picker.start()
        reporting = asyncio.create_task(report(made.places.xds, "weir-picker~plain", picker.picker))
        try:
            captured = made.pods["llm-0"]
            picker.target = captured.endpoint
            status, rows = await seen(made)
            assert (status, wrongs(rows)) == (1, {"honoured"})
            assert rows["honoured"]["verdict"] == "wrong"
            assert "internal address" in rows["honoured"]["do"]
        finally:
            reporting.cancel()
            await picker.stop()
