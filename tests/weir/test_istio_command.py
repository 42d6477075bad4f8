"""`weir istio`: what an operator types and sees."""

import json

import pytest
import yaml
from click.testing import CliRunner

from tests.xds.istio.test_shapes_choice import FLAG, ISTIOD
from tests.xds.istio.wired import GATEWAY, HAVE, OTHER_POOL, pool, route, to
from weir.cli import main
from xds.istio.shapes.wiring import Shape


def run(*arguments):
    return CliRunner().invoke(main, ["istio", *map(str, arguments)])


@pytest.fixture
def config(tmp_path):
    def write(*documents, name="have.yaml"):
        (tmp_path / name).write_text("\n---\n".join(documents))
        return tmp_path

    return write


def test_manifests_are_yaml_on_stdout_and_notes_on_stderr(config):
    have = config(*HAVE[Shape.GATEWAY], name="a.yaml")
    result = run("manifests", "llm-pool", "--config", have, "--istio-version", "1.32")
    assert result.exit_code == 0, result.output
    kinds = [item["kind"] for item in yaml.safe_load_all(result.stdout) if item]
    assert kinds == ["EnvoyFilter"] * 3
    assert result.stderr == ""
    config(pool().replace("FailOpen", "FailClose"), *HAVE[Shape.GATEWAY][1:], name="a.yaml")
    result = run("manifests", "llm-pool", "--config", have, "--istio-version", "1.32")
    assert result.stderr.startswith("note: InferencePool ns/llm-pool: ")
    assert "note:" not in result.stdout


def test_a_step_is_printed_by_itself(config):
    have = config(*HAVE[Shape.WAYPOINT_OWN_CLUSTER])
    options = ("--config", have, "--istio-version", "1.32")
    whole = run("manifests", "ns/llm-pool", *options).stdout
    first, second = (run("manifests", "ns/llm-pool", *options, "--step", n).stdout for n in (1, 2))
    assert whole == f"{first}---\n{second}"
    assert "applyTo: HTTP_ROUTE" in second
    assert "applyTo: HTTP_ROUTE" not in first


def test_a_step_that_is_the_operators_own_says_so(config):
    have = config(*HAVE[Shape.WAYPOINT_INFERENCEPOOL])
    options = ("--config", have, "--istio-version", "1.32", "--step", 2)
    result = run("manifests", "llm-pool", *options)
    assert result.exit_code == 1
    assert "--step 2: nothing to apply" in result.stderr


def test_json_has_the_same_objects(config):
    have = config(*HAVE[Shape.GATEWAY])
    options = ("llm-pool", "--config", have, "--istio-version", "1.32")
    text = run("manifests", *options).stdout
    (said,) = json.loads(run("manifests", *options, "--json").stdout)
    objects = [item for step in said["steps"] for item in step["objects"]]
    assert objects == [item for item in yaml.safe_load_all(text) if item]
    assert said["shape"] == "gateway"
    assert said["gateway"] == "ns/inference-gateway"
    assert said["twin"].startswith("weir-twin|")


def test_the_version_is_istiods_where_nobody_says_it(config):
    have = config(*HAVE[Shape.GATEWAY], ISTIOD % ("1.30.1", FLAG))
    result = run("manifests", "llm-pool", "--config", have, "--json")
    assert json.loads(result.stdout)[0]["shape"] == "gateway-own-cluster"
    assert json.loads(result.stdout)[0]["istio"] == "1.30"


def test_addresses_are_those_that_were_said(config):
    have = config(*HAVE[Shape.GATEWAY])
    result = run(
        "manifests",
        "llm-pool",
        "--config",
        have,
        "--istio-version",
        "1.32",
        "--xds-address",
        "w.infra.svc.example.org:1234",
        "--picker",
        "p.infra.svc.example.org:5678",
    )
    assert "outbound|1234||w.infra.svc.example.org" in result.stdout
    assert "outbound|5678||p.infra.svc.example.org" in result.stdout
    assert "infra/w.infra.svc.example.org" in result.stdout
    assert "outbound|54321||llm-pool-ip-1c222a41.ns.svc.example.org" in result.stdout


WRONG = {
    "no version": ((), "the Istio version is not known"),
    "a version that is none": (("--istio-version", "new"), "--istio-version: 1.32 or 1.32.1"),
    "an xDS address that is none": (
        ("--istio-version", "1.32", "--xds-address", "weir-xds:15010"),
        "--xds-address: SERVICE.NAMESPACE.svc.DOMAIN:PORT, not 'weir-xds:15010'",
    ),
    "a picker that is none": (
        ("--istio-version", "1.32", "--picker", "p.ns.svc.cluster.local"),
        "--picker: SERVICE.NAMESPACE.svc.DOMAIN:PORT",
    ),
    "a shape for which there is nothing": (
        ("--istio-version", "1.32", "--shape", "waypoint-own-cluster"),
        "nothing to wire by waypoint-own-cluster",
    ),
}


@pytest.mark.parametrize(("options", "message"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_one_line_and_status_1(config, options, message):
    have = config(*HAVE[Shape.GATEWAY])
    result = run("manifests", "llm-pool", "--config", have, *options)
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: ")
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""


BAD = {
    "a file that is not YAML": ("{", "bad.yaml: not YAML"),
    "a field of another type": (
        GATEWAY.replace("gatewayClassName: istio", "gatewayClassName: [istio]"),
        "bad.yaml: document 1 (Gateway inference-gateway): spec.gatewayClassName: Expected `str`",
    ),
    "a pool that has a misspelt field": (
        OTHER_POOL.replace("targetPorts", "targetPort"),
        "spec.targetPort: unknown field; is `targetPorts` meant?",
    ),
    "a pool with a bad annotation": (
        OTHER_POOL.replace("annotations: {}", "annotations: {weir.dev/policy: best}"),
        "metadata.annotations[weir.dev/policy]: one of",
    ),
    "an object that stands twice": (route(to("llm-pool")), "already in"),
}


@pytest.mark.parametrize(("document", "message"), BAD.values(), ids=BAD)
def test_what_is_wrong_in_a_file_names_it(config, document, message):
    config(*HAVE[Shape.GATEWAY])
    have = config(document, name="bad.yaml")
    result = run("manifests", "llm-pool", "--config", have, "--istio-version", "1.32")
    assert result.exit_code == 1
    assert message in result.stderr


def test_an_empty_directory_is_said(tmp_path):
    result = run("manifests", "llm-pool", "--config", tmp_path, "--istio-version", "1.32")
    assert result.exit_code == 1
    assert "no file of Kubernetes objects" in result.stderr


def test_precheck_prints_the_matrix_and_what_to_do(config):
    result = run("precheck", "--istio-version", "1.29")
    assert result.exit_code == 0
    assert "gateway-own-cluster" in result.stdout
    assert "MERGE_AND_REPLACE_LIST came with Istio 1.32" in result.stdout
    have = config(*HAVE[Shape.GATEWAY], ISTIOD % ("1.32.0", ""))
    result = run("precheck", "--config", have, "--json")
    assert result.exit_code == 1
    said = json.loads(result.stdout)
    assert said["shapes"]["gateway"]["pick"] == {"verdict": "yes", "evidence": "run", "why": ""}
    assert [each["where"] for each in said["findings"] if each["stops"]] == [
        "Deployment istio-system/istiod"
    ]


def test_precheck_needs_to_know_something():
    result = run("precheck")
    assert result.exit_code == 1
    assert "say --istio-version, or where istiod" in result.stderr


def test_uninstall_says_the_order_and_refuses_another(config):
    have = config(*HAVE[Shape.WAYPOINT_OWN_CLUSTER])
    printed = run("manifests", "llm-pool", "--config", have, "--istio-version", "1.32").stdout
    config(printed, name="weir.yaml")
    result = run("uninstall", "--dry-run", "llm-pool", "--config", have)
    assert result.exit_code == 0
    lines = [line for line in result.stdout.splitlines() if line.startswith("kubectl")]
    assert lines == [
        "kubectl delete envoyfilter -n ns weir.waypoint.ns.llm.8000.route",
        "kubectl delete envoyfilter -n ns weir.waypoint.ns.llm.8000.cluster",
        "kubectl delete envoyfilter -n ns weir.waypoint.ns.llm.8000",
    ]
    result = run("uninstall", "--dry-run", "llm-pool", "--config", have, "--step", 2)
    assert result.exit_code == 1
    assert "weir.waypoint.ns.llm.8000.route: goes first, in step 1" in result.stderr
    config(printed.split("# Step 2")[0].rpartition("---")[0], name="weir.yaml")
    result = run("uninstall", "--dry-run", "llm-pool", "--config", have, "--step", 2, "--json")
    assert [len(step["commands"]) for step in json.loads(result.stdout)[0]["steps"]] == [2]


def test_uninstall_removes_nothing_by_itself(config):
    have = config(*HAVE[Shape.GATEWAY])
    result = run("uninstall", "llm-pool", "--config", have)
    assert result.exit_code == 2
    assert "--dry-run" in result.stderr
