from types import SimpleNamespace

from prometheus_client import CollectorRegistry, generate_latest

from xds.loads import LoadReports
from xds.plane import Plane
from xds.pool import Endpoint, Load, Mode, Observation, Policy, Pool
from xds.problems import Problem, Reason
from xds.report import Metrics, status
from xds.sources.source import describe
from xds.standalone import Standalone

SERVER = SimpleNamespace(clients=(), traffic=SimpleNamespace(nacks=0))
SOURCE = describe("test", [], complete=True, not_in_effect=[])
A, B = "10.0.0.1:80", "10.0.0.2:80"


def plane(policy):
    made = Plane(Standalone("127.0.0.1:1", "127.0.0.1:2"))
    members = tuple(Endpoint(name, "ns/x", name.partition(":")[0], 80) for name in (A, B))
    made.configure({"ns/p": Pool("ns/p", members, policy)}, 0.0)
    for now in range(1, 20):
        made.observe(A, Observation(Load(float(now), waiting=40)))
        made.observe(B, Observation(Load(float(now), waiting=0)))
        made.weigh(float(now))
    return made


def view(made, *faults):
    source = SimpleNamespace(problems=(), faults=faults, status=lambda _: SOURCE)
    return status(made, SERVER, LoadReports(), source, 20.0)


def metrics(found):
    registry = CollectorRegistry()
    registry.register(Metrics(lambda: found))
    return generate_latest(registry).decode().splitlines()


def test_a_pool_in_another_mode_shows_what_is_pushed_beside_what_would_be():
    found = view(plane(Policy(mode=Mode.OBSERVE, queue_threshold=30)))
    pool = found["pools"]["ns/p"]
    assert (pool["mode"], pool["annotations"]["queue-threshold"]) == ("observe", "30")
    busy, idle = pool["endpoints"]
    assert (busy["weight"], busy["priority"]) == (idle["weight"], idle["priority"]) == (100, 0)
    assert busy["computed_weight"] < 100 < idle["computed_weight"]
    assert (busy["computed_priority"], idle["computed_priority"]) == (1, 0)
    lines = metrics(found)
    assert f'weir_endpoint_weight{{endpoint="{A}",pool="ns/p"}} 100.0' in lines
    assert f'weir_endpoint_computed_priority{{endpoint="{A}",pool="ns/p"}} 1.0' in lines


def test_in_the_active_mode_what_is_pushed_is_what_was_computed():
    for each in view(plane(Policy()))["pools"]["ns/p"]["endpoints"]:
        assert each["weight"] == each["computed_weight"] != 100


def test_faults_are_shown_in_words_and_counted_by_what_is_bounded():
    bad = Problem("Pod", "ns", "x", Reason.BAD_VALUE, "one of true, false", "drain", "secret?")
    other = Problem("Pod", "ns", "x", Reason.NO_PODS, "none")
    found = view(plane(Policy()), bad, Problem(**_of(bad) | {"kind": "InferencePool"}), other)
    assert found["faults"][0]["message"].startswith("weir.dev/drain: one of true, false, not")
    assert found["faults"][0]["reason"] == "BadValue"
    lines = [line for line in metrics(found) if line.startswith("weir_annotation_problems{")]
    assert lines == [
        'weir_annotation_problems{knob="drain",name="x",namespace="ns",reason="BadValue"} 2.0',
        'weir_annotation_problems{knob="",name="x",namespace="ns",reason="NoPods"} 1.0',
    ]


def _of(problem):
    return {name: getattr(problem, name) for name in problem.__dataclass_fields__}
