import json
import subprocess
import sys
from pathlib import Path

import pytest

from weir.bench import objects, pages, sampling
from weir.bench.control_plane import Figures, Shares, Size, Window, notes
from weir.bench.sampling import FETCH, PARSE, PARTS, PUSH, REST, WATCH, WEIGH, Function, part
from xds import exposition
from xds.manifests import InferencePool, Pod
from xds.sources import kinds

SIZE = Size(pods=100, pools=5)


def window(cores, scrapes=100.0):
    return Window(cores, scrapes, assignments=1.0, loads=60.0, replaced=0.0)


def shares(**cores):
    return Shares(dict.fromkeys(PARTS, 0.0) | cores, scrapes=100.0)


def figures(**changes):
    found = {
        "starts": [1.0, 2.0],
        "steady": [window(0.1), window(0.3), window(0.2)],
        "replacing": [window(0.4)],
        "memory_mib": 100.0,
        "shares": {"steady": shares(fetch=0.05, parse=0.006, weigh=0.004, push=0.005)},
    }
    return Figures(SIZE, **(found | changes))


def missed(found):
    return [bar.name.partition(",")[0] for bar in found.bars if not bar.met]


def test_a_run_within_its_bars_meets_them_all():
    assert missed(figures()) == []
    assert figures().cores == 0.2, "the median of the windows"


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"starts": [1.0, 5.1, 1.0]}, "start to the first complete snapshot"),
        ({"steady": [window(0.71), window(0.72), window(0.1)]}, "steady CPU"),
        ({"memory_mib": 300.5}, "memory"),
        ({"shares": {"steady": shares(parse=0.008, weigh=0.006, push=0.007)}}, "parse"),
    ],
)
def test_each_bar_can_be_missed(change, name):
    assert missed(figures(**change)) == [name]


def test_shares_sum_up_and_are_said_a_scrape():
    found = shares(fetch=0.03, parse=0.02, rest=0.01)
    assert found.total == pytest.approx(0.06)
    assert found.ms_a_scrape(FETCH, PARSE) == pytest.approx(0.5)
    rows = {row.name: row for row in figures(shares={"steady": found, "replacing": found}).parts}
    assert list(rows) == list(PARTS)
    assert rows["fetch"].share == pytest.approx(0.5)
    assert rows["rest"].ms_a_scrape == pytest.approx(0.1)
    assert sum(row.share for row in rows.values()) == pytest.approx(1.0)


def test_the_peers_figure_is_said_for_as_many_pods():
    assert any("0.27 core" in line for line in notes(figures()))


def functions(*names):
    return [Function(*each.split(":")) for each in names]


@pytest.mark.parametrize(
    ("stack", "owner"),
    [
        (["re:findall", "xds.exposition:samples", "xds.scraper:_once"], PARSE),
        (["xds.http1:data_received", "asyncio.runners:run"], FETCH),
        (["xds.hbone_tunnel:feed", "xds.hbone_connection:data_received"], FETCH),
        (["xds.plane:observe", "xds.app:_on_observation", "xds.scraper:_tell"], WEIGH),
        (["dataclasses:replace", "xds.weights:step", "xds.plane:weigh", "xds.app:_weigh"], WEIGH),
        (["xds.weights:step", "xds.plane:configure", "xds.app:_reconfigure"], WEIGH),
        (["xds.wire:join_loads", "xds.plane:_made", "xds.plane:snapshot"], PUSH),
        (["xds.plane:snapshot", "xds.app:_reconfigure"], PUSH),
        (["xds.streams:_write", "xds.server:handle"], PUSH),
        (["msgspec:decode", "xds.sources.reflector:line", "xds.sources.feed:_follow"], WATCH),
        (["xds.registry:_endpoints"], WATCH),
        (["aiohttp.web_protocol:start", "asyncio.runners:run"], REST),
        (["asyncio.futures:_set_result_unless_cancelled", "asyncio.runners:run"], REST),
        ([], REST),
    ],
)
def test_time_is_the_part_of_the_innermost_function_that_has_one(stack, owner):
    assert part(functions(*stack)) == owner


def test_every_module_that_is_named_exists():
    root = Path(sampling.__file__).parents[2]
    for name in [*sampling.MODULES, *(each.module for each in sampling.FUNCTIONS)]:
        if name.startswith("xds"):
            path = root / name.replace(".", "/")
            assert path.with_suffix(".py").exists() or path.is_dir(), name
    for module, function in sampling.FUNCTIONS:
        text = (root / f"{module.replace('.', '/')}.py").read_text()
        assert f"def {function}(" in text, function


BUSY = """
import json, time
from weir.bench.sampling import Sampler
from xds import exposition
begun = time.process_time()
with Sampler() as sampler:
    while time.process_time() - begun < 0.3:
        exposition.read(b"vllm:num_requests_waiting 1\\n" * 200, "vllm", at=0.0)
    print(json.dumps([sampler.seconds(), time.process_time() - begun]))
"""


def test_a_sampled_process_tells_of_all_its_time_and_whose_it_was():
    # A process of its own: signals are for the whole of it.
    ended = subprocess.run([sys.executable, "-c", BUSY], capture_output=True, check=True, text=True)
    seconds, used = json.loads(ended.stdout)
    assert list(seconds) == list(PARTS)
    assert seconds["parse"] > 0.5 * used
    assert sum(seconds.values()) <= used + 0.05


def test_pages_are_as_long_as_a_real_servers_and_change_every_second():
    history = pages.history(30)
    assert len(set(history)) == len(history) == 30
    assert all(len(page) > 50_000 and page.count(b"\n") > 500 for page in history)
    loads = [exposition.read(page, "vllm", at=0.0) for page in history]
    assert len({load.running for load in loads}) > 5
    counted = [load.answer_count for load in loads]
    assert counted == sorted(counted), "counters only grow"


def test_objects_are_as_long_as_a_clusters_and_say_what_pools_are_made_of():
    document = objects.pod("pool-0-abc", "pool-0", "127.10.0.1", 8000)
    text = json.dumps(document, separators=(",", ":")).encode()
    assert 7_000 < len(text) < 10_000
    pod = kinds.POD.parse(text).object
    assert isinstance(pod, Pod)
    assert pod.status.pod_ip == "127.10.0.1"
    nodes = map(objects.node, range(objects.NODES))
    assert pod.spec.node_name in {each["metadata"]["name"] for each in nodes}
    assert kinds.NODE.parse(json.dumps(objects.node(1)).encode()).object.kind == "Node"
    assert document["metadata"]["managedFields"][1]["fieldsV1"]["f:status"]["f:podIP"] == {}
    pool = kinds.POOL.parse(json.dumps(objects.pool("pool-0", 8000, "1s")).encode()).object
    assert isinstance(pool, InferencePool)
    assert pool.spec.selector.match_labels.items() <= pod.metadata.labels.items()
