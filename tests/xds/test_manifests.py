import pytest
import yaml

from xds import registry
from xds.manifests import (
    InferenceModel,
    InferenceModelRewrite,
    InferencePool,
    ManifestError,
    convert,
    read,
    upgrade,
)
from xds.pool import Endpoint, Mesh, Objective, Policy, Tier

POOL = """
apiVersion: inference.networking.k8s.io/v1
kind: InferencePool
metadata: {name: llama, namespace: prod}
spec:
  selector: {matchLabels: {app: llama}}
  targetPorts: [{number: 8000}]
"""
POD = """
apiVersion: v1
kind: Pod
metadata: {name: llama-0, namespace: prod, labels: {app: llama}}
spec: {containers: [{name: vllm, image: vllm, ports: [{containerPort: 8000}]}]}
status:
  podIP: 10.0.0.7
  conditions: [{type: Ready, status: "True", lastTransitionTime: 2026-01-01T00:00:00Z}]
"""


def changed(text, path, value):
    """The manifest with the field at `path` set, or removed where `value` is None."""
    document = yaml.safe_load(text)
    *parents, last = path
    place = document
    for key in parents:
        place = place.setdefault(key, {}) if isinstance(place, dict) else place[key]
    if value is None:
        del place[last]
    else:
        place[last] = value
    return yaml.safe_dump(document)


def pools(*texts):
    return registry.pools(m for n, text in enumerate(texts) for m in read(text, f"{n}.yaml"))


def annotated(text, **annotations):
    said = {f"weir.dev/{name.replace('_', '-')}": value for name, value in annotations.items()}
    return changed(text, ["metadata", "annotations"], said)


def test_a_pool_has_the_pods_that_its_selector_finds():
    pool = pools(POOL, POD)["prod/llama"]
    assert pool.policy == Policy()
    mesh = Mesh(workload="llama-0;prod;llama;;Kubernetes")
    assert pool.endpoints == (
        Endpoint("10.0.0.7:8000", "prod/llama-0", "10.0.0.7", 8000, mesh=mesh),
    )


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["metadata", "namespace"], "other"),
        (["metadata", "labels"], {"app": "other"}),
        (["status", "podIP"], ""),
        (["status", "phase"], "Failed"),
    ],
)
def test_other_pods_are_not_in_it(path, value):
    assert pools(POOL, changed(POD, path, value))["prod/llama"].endpoints == ()


def test_a_pod_that_is_not_ready_is_a_member_that_is_not_ready():
    pod = changed(POD, ["status", "conditions"], [{"type": "Ready", "status": "False"}])
    assert [each.ready for each in pools(POOL, pod)["prod/llama"].endpoints] == [False]


def test_every_port_of_a_pod_is_an_endpoint_and_ipv6_stands_in_brackets():
    pool = changed(POOL, ["spec", "targetPorts"], [{"number": 8001}, {"number": 8000}])
    pod = changed(POD, ["status", "podIP"], "fd00::7")
    names = [each.id for each in pools(pool, pod)["prod/llama"].endpoints]
    assert names == ["[fd00::7]:8000", "[fd00::7]:8001"]


def test_annotations_tune_pools_and_pods():
    pool = annotated(
        POOL,
        policy="affinity",
        hash_balance_factor="2",
        scrape_interval="500ms",
        engine="sglang",
    )
    pod = annotated(POD, capacity="2.5", drain="true")
    made = pools(pool, pod)["prod/llama"]
    assert made.policy == Policy(Tier.AFFINITY, 200, 0.5)
    endpoint = made.endpoints[0]
    assert (endpoint.speed, endpoint.draining, endpoint.engine) == (2.5, True, "sglang")


def test_a_pods_label_names_its_engine_where_the_pool_names_none():
    pod = changed(POD, ["metadata", "labels", "llm-d.ai/engine-type"], "trtllm-serve")
    assert pools(POOL, pod)["prod/llama"].endpoints[0].engine == "trtllm-serve"


def test_a_pod_that_is_being_deleted_drains():
    pod = changed(POD, ["metadata", "deletionTimestamp"], "2026-01-01T00:00:00Z")
    assert pools(POOL, pod)["prod/llama"].endpoints[0].draining


def test_objectives_belong_to_the_pool_that_they_refer_to():
    objective = """
apiVersion: inference.networking.x-k8s.io/v1alpha2
kind: InferenceObjective
metadata: {name: batch, namespace: prod}
spec: {priority: -1, poolRef: {name: llama}}
"""
    assert pools(POOL, objective)["prod/llama"].objectives == (Objective("batch", -1),)


def test_lists_and_kinds_that_mean_nothing_to_us_are_read_and_passed_over():
    items = [yaml.safe_load(POOL), yaml.safe_load(POD)]
    service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "x"}, "spec": {}}
    text = yaml.safe_dump({"apiVersion": "v1", "kind": "List", "items": [*items, service]})
    assert len(pools(text)["prod/llama"].endpoints) == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: [", "0.yaml: not YAML: "),
        ("- 1", "0.yaml: document 1: an object was expected, not a list"),
        ("kind: Pod", "`apiVersion` and `kind`"),
        (
            changed(POOL, ["spec", "targetPort"], 8000),
            (
                "0.yaml: document 1 (InferencePool llama): spec.targetPort: unknown field; is "
                "`targetPorts` meant?"
            ),
        ),
        (changed(POOL, ["spec", "targetPorts"], None), "spec.targetPorts: required, and missing"),
        (
            changed(POOL, ["spec", "targetPorts"], [{"number": "http"}]),
            "spec.targetPorts[0].number: Expected `int`, got `str`",
        ),
        (
            changed(POOL, ["spec", "targetPorts"], [{"number": 99999}]),
            "0.yaml: InferencePool prod/llama: spec.targetPorts[0].number: 1 to 65535, not 99999",
        ),
        (changed(POOL, ["spec", "targetPorts"], []), "spec.targetPorts: at least one port"),
        (
            changed(POOL, ["spec", "selector", "matchLabels"], {}),
            "spec.selector.matchLabels: at least one label",
        ),
        (
            changed(POOL, ["apiVersion"], "inference.networking.x-k8s.io/v1alpha2"),
            "is not supported; write it as `inference.networking.k8s.io`",
        ),
        (
            annotated(POOL, polcy="pick"),
            "metadata.annotations[weir.dev/polcy]: unknown annotation; is `weir.dev/policy` meant?",
        ),
        (
            annotated(POOL, policy="fastest"),
            (
                "annotations[weir.dev/policy]: one of pick, affinity, weights, round-robin, "
                "least-request, not 'fastest'"
            ),
        ),
        (annotated(POOL, hash_balance_factor="0.5"), "a factor from 1 to 10, not '0.5'"),
        (annotated(POOL, scrape_interval="1"), "such as 0.2s or 200ms, not '1'"),
        (annotated(POOL, scrape_interval="5ms"), "from 50ms to 60s, not '5ms'"),
        (annotated(POD, capacity="fast"), "Pod prod/llama-0: metadata.annotations"),
        (POOL + "---" + POOL, "already in 0.yaml; remove one"),
    ],
)
def test_a_mistake_names_the_file_the_field_and_the_way_out(text, words):
    with pytest.raises(ManifestError) as caught:
        pools(text)
    assert words in str(caught.value)


MODEL = """
apiVersion: inference.networking.x-k8s.io/v1alpha2
kind: InferenceModel
metadata: {name: chat}
spec:
  modelName: chat
  criticality: Critical
  poolRef: {name: llama}
  targetModels: [{name: chat-v1, weight: 9}, {name: chat-v2, weight: 1}]
---
apiVersion: llm-d.ai/v1alpha2
kind: InferenceModelRewrite
metadata: {name: canary}
spec:
  poolRef: {name: llama}
  rules:
    - matches: [{model: {value: chat}}]
      targets: [{modelRewrite: chat-v2, weight: 5}]
"""


def test_models_and_rewrites_are_read_and_are_no_part_of_a_pool():
    model, rewrite = read(MODEL, "models.yaml")
    assert isinstance(model.object, InferenceModel)
    assert [each.weight for each in model.object.spec.target_models] == [9, 1]
    assert isinstance(rewrite.object, InferenceModelRewrite)
    assert rewrite.object.spec.rules[0].matches[0].model.value == "chat"
    assert registry.pools([*read(POOL, "pool.yaml"), model, rewrite])["prod/llama"].endpoints == ()


def test_a_misspelt_field_of_a_model_is_an_error_in_a_file():
    with pytest.raises(
        ManifestError, match=r"spec\.modelname: unknown field; is `modelName` meant"
    ):
        read(MODEL.replace("modelName", "modelname"), "models.yaml")


def test_fields_that_are_newer_than_we_are_are_passed_over_in_what_an_api_server_says():
    document = yaml.safe_load(POOL)
    document["spec"]["fancy"] = 1
    document["spec"]["targetPorts"][0]["name"] = "http"
    manifest = convert(document, InferencePool, "kubernetes")
    assert sorted(manifest.passed_over) == ["spec.fancy", "spec.targetPorts[0].name"]
    assert manifest.object.spec.target_ports[0].number == 8000


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [("targetPorts", "x", "spec.targetPorts: "), ("selector", None, "spec.selector: required")],
)
def test_what_is_wrong_is_wrong_wherever_it_comes_from(field, value, words):
    document = yaml.safe_load(changed(POOL, ["spec", field], value))
    with pytest.raises(ManifestError, match="kubernetes: InferencePool prod/llama: " + words):
        convert(document, InferencePool, "kubernetes")


def test_an_object_of_nothing_but_unknown_fields_is_given_up():
    document = yaml.safe_load(POOL)
    document["spec"] |= {f"field{number}": 1 for number in range(100)}
    with pytest.raises(ManifestError, match="unknown field"):
        convert(document, InferencePool, "kubernetes")


def test_a_v1alpha2_pool_is_the_v1_that_it_would_be():
    document = {
        "metadata": {"name": "old"},
        "spec": {
            "selector": {"app": "llama"},
            "targetPortNumber": 8000,
            "extensionRef": {"name": "epp", "portNumber": 9002, "failureMode": "FailOpen"},
        },
    }
    spec = convert(upgrade(document), InferencePool, "kubernetes").object.spec
    assert spec.selector.match_labels == {"app": "llama"}
    assert [port.number for port in spec.target_ports] == [8000]
    picker = spec.endpoint_picker_ref
    assert (picker.name, picker.port.number, picker.failure_mode) == ("epp", 9002, "FailOpen")
    with pytest.raises(ManifestError, match=r"spec\.selector: required"):
        convert(upgrade({"metadata": {"name": "x"}, "spec": {}}), InferencePool, "kubernetes")
    with pytest.raises(ManifestError, match=r"spec: "):
        convert(upgrade({"metadata": {"name": "x"}, "spec": 7}), InferencePool, "kubernetes")
