import json
import subprocess
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from weir.status import differences

CLIENT = {
    "node": "envoy-1",
    "identity": "team/proxy",
    "types": {
        "ClusterLoadAssignment": {
            "state": "NACKED",
            "ack_age_seconds": 1.5,
            "sent": 3,
            "bytes": 300,
            "has": {"a": "1", "b": "1", "gone": "1"},
            "should_have": {"a": "1", "b": "2", "new": "1"},
            "refuses": {"b": "2"},
        }
    },
    "refusals": {"ClusterLoadAssignment": {"version": "2", "reason": "b: too heavy"}},
}
PODS = {
    "kind": "pods",
    "namespace": "",
    "objects": 12,
    "in_effect": True,
    "state": "watching",
    "age_seconds": 3.2,
    "stale": False,
    "lists": 1,
    "failures": 0,
    "refused": 0,
    "problem": "",
}
SOURCE = {
    "name": "kubernetes https://10.0.0.1",
    "complete": True,
    "kinds": [PODS],
    "not_in_effect": [],
}
VIEW = {
    "source": SOURCE,
    "pools": {
        "team/b": {
            "policy": "pick",
            "quarantined": [{"what": "weights", "reason": "b: too heavy"}],
            "endpoints": [{"endpoint": "10.0.0.1:80", "weight": 100, "priority": 0}],
        }
    },
    "clients": [CLIENT],
    "problems": [],
}
WELL = {
    "source": SOURCE,
    "pools": {},
    "clients": [CLIENT | {"types": {}, "refusals": {}}],
    "problems": [],
}


def test_differences_say_what_is_there_what_should_be_and_why():
    rows = {
        row["name"]: (row["has"], row["should_have"], row["why"]) for row in differences(CLIENT)
    }
    assert rows == {
        "b": ("1", "2", "refused 2: b: too heavy"),
        "gone": ("1", None, "to be removed"),
        "new": (None, "1", "not sent, or no answer yet"),
    }


@contextmanager
def control_plane(view):
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(view).encode())

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def weir(*arguments):
    command = [sys.executable, "-m", "weir", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=30, check=False, env={"COLUMNS": "200"}
    )


def test_status_shows_each_client_by_type_and_fails_where_something_is_refused():
    with control_plane(VIEW) as address:
        ended = weir("status", "--status", address)
    assert ended.returncode == 1
    for words in ("envoy-1", "team/proxy", "NACKED", "1.5 s ago", "b: too heavy", "10.0.0.1:80"):
        assert words in ended.stdout
    assert "team/b: weights in quarantine until it changes" in ended.stdout


def test_status_of_a_plane_that_is_well_is_a_success_and_json_is_the_whole_view():
    with control_plane(WELL) as address:
        assert weir("status", "--status", address).returncode == 0
        ended = weir("status", "--status", address, "--json")
    assert json.loads(ended.stdout) == WELL


def test_status_says_in_which_mode_a_pool_is_and_what_is_wrong_with_which_object():
    fault = {
        "kind": "Pod",
        "namespace": "team",
        "name": "b-0",
        "message": "weir.dev/drain: one of true, false, not 'yes'",
    }
    pool = VIEW["pools"]["team/b"] | {"mode": "freeze", "quarantined": []}
    with control_plane(WELL | {"pools": {"team/b": pool}, "faults": [fault]}) as address:
        ended = weir("status", "--status", address)
    assert ended.returncode == 1
    assert "pick, freeze" in ended.stdout
    assert "Pod team/b-0: weir.dev/drain: one of true, false, not 'yes'" in ended.stdout


def test_status_shows_where_pools_come_from_and_fails_where_that_is_out_of_date():
    away = PODS | {"state": "retrying", "stale": True, "problem": "connection refused"}
    gone = PODS | {"kind": "gateways", "state": "absent"}
    rewrite = PODS | {"kind": "inferencemodelrewrites.llm-d.ai", "in_effect": False}
    source = SOURCE | {
        "kinds": [away, gone, rewrite],
        "not_in_effect": ["kubernetes: InferenceModelRewrite ns/ab"],
    }
    problem = "kubernetes: Pod ns/a: metadata.annotations[weir.dev/drain]: true or false"
    with control_plane(WELL | {"source": source, "problems": [problem]}) as address:
        ended = weir("status", "--status", address)
    assert ended.returncode == 1
    for words in (
        "kubernetes https://10.0.0.1",
        "connection refused",
        "3 s ago",
        "12 (not in effect)",
        "not in effect: kubernetes: InferenceModelRewrite ns/ab",
        "possibly out of date: pods; what we have stands",
        problem,
    ):
        assert words in ended.stdout
    assert "gateways" not in ended.stdout, "it is not installed, and that is nobody's fault"


def test_status_before_the_first_pools_are_known_says_so():
    waiting = {"source": SOURCE | {"complete": False}, "pools": {}, "clients": [], "problems": []}
    with control_plane(waiting) as address:
        ended = weir("status", "--status", address)
    assert (ended.returncode, "not serving yet" in ended.stdout) == (1, True)


PLACE = {
    "pool": "team/b",
    "gateway": "team/gw",
    "shape": "gateway",
    "done": False,
    "says": "step 1 of 2 waits: 1 of 3 proxies",
    "notes": ["EnvoyFilter team/other: applies to CLUSTER too"],
}
WIRING = {
    "replica": "weir-xds-1",
    "acting": True,
    "paused": "",
    "away": "",
    "silent": {"10.0.0.9:15014": "no answer in time"},
    "places": [PLACE],
    "leaving": [{"pool": "team/old", "gateway": "team/gw", "step": 2}],
}


def test_status_shows_where_the_wiring_of_each_pool_stands_and_what_it_waits_for():
    with control_plane(WELL | {"wiring": WIRING}) as address:
        ended = weir("status", "--status", address)
    assert ended.returncode == 0, "to wait is not to be ill"
    for words in (
        "kept by this replica (weir-xds-1; silent: 10.0.0.9:15014)",
        "step 1 of 2 waits: 1 of 3 proxies",
        "applies to CLUSTER too",
        "step 2 is taken away next",
    ):
        assert words in ended.stdout
    left = WIRING | {"acting": False, "paused": "httproutes: forbidden"}
    with control_plane(WELL | {"wiring": left}) as address:
        ended = weir("status", "--status", address)
    assert ended.returncode == 1
    assert "left as it is: httproutes: forbidden" in ended.stdout


def test_diff_lists_differences_and_its_status_says_whether_there_are_any():
    with control_plane(VIEW) as address:
        ended = weir("diff", "envoy-1", "--status", address, "--json")
        assert ended.returncode == 1
        assert [row["name"] for row in json.loads(ended.stdout)] == ["b", "gone", "new"]
        assert "to be removed" in weir("diff", "envoy-1", "--status", address).stdout
        unknown = weir("diff", "nobody", "--status", address)
    assert unknown.returncode == 2
    assert "no client 'nobody'" in unknown.stderr
    with control_plane(WELL) as address:
        ended = weir("diff", "envoy-1", "--status", address)
    assert (ended.returncode, "has everything" in ended.stdout) == (0, True)


@pytest.mark.parametrize("command", [("status",), ("diff", "x")])
def test_a_control_plane_that_is_away_is_status_2_and_says_where_it_looked(command):
    ended = weir(*command, "--status", "127.0.0.1:1")
    assert ended.returncode == 2
    assert "no control plane at 127.0.0.1:1" in ended.stderr
