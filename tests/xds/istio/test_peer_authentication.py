"""What PeerAuthentications come to, as a real istiod 1.32-dev answered for the same objects."""

import json

import pytest
import yaml

from xds import registry
from xds.istio.peer_authentication import PeerAuthentications
from xds.manifests import read


def policy(namespace="ns", mode=None, *, name="p", labels=None, ports=None, created=None):
    return {
        "apiVersion": "security.istio.io/v1",
        "kind": "PeerAuthentication",
        "metadata": {"name": name, "namespace": namespace, "creationTimestamp": created},
        "spec": {
            **({"mtls": {"mode": mode}} if mode else {}),
            **({"selector": {"matchLabels": labels}} if labels else {}),
            **({"portLevelMtls": {p: {"mode": m} for p, m in ports.items()}} if ports else {}),
        },
    }


def objects(*documents):
    return [each.object for each in read(yaml.safe_dump_all(documents), "x.yaml")]


OLD, NEW = "2026-01-01T00:00:00Z", "2026-02-01T00:00:00Z"


@pytest.mark.parametrize(
    ("policies", "disabled"),
    [
        ([], False),
        ([policy(mode="DISABLE")], True),
        ([policy("istio-system", "DISABLE")], True),
        ([policy("other", "DISABLE")], False),
        ([policy("istio-system", "DISABLE"), policy(mode="STRICT")], False),
        ([policy("istio-system", "DISABLE"), policy(mode="UNSET")], True),
        ([policy("istio-system", "DISABLE"), policy()], True),
        ([policy(mode="DISABLE", labels={"app": "llm"})], True),
        ([policy(mode="DISABLE", labels={"app": "other"})], False),
        ([policy("istio-system", "DISABLE", labels={"app": "llm"})], False),
        (
            [policy(mode="DISABLE"), policy(mode="PERMISSIVE", name="q", labels={"app": "llm"})],
            False,
        ),
        ([policy(labels={"app": "llm"}, ports={"8000": "DISABLE"})], True),
        ([policy(labels={"app": "llm"}, ports={8000: "DISABLE"})], True),
        ([policy(labels={"app": "llm"}, ports={"9000": "DISABLE"})], False),
        ([policy(mode="DISABLE", labels={"app": "llm"}, ports={"8000": "STRICT"})], False),
        ([policy(mode="DISABLE", labels={"app": "llm"}, ports={"8000": "UNSET"})], True),
        ([policy(mode="STRICT", created=NEW), policy(mode="DISABLE", name="a", created=OLD)], True),
        (
            [policy(mode="DISABLE", created=NEW), policy(mode="STRICT", name="q", created=OLD)],
            False,
        ),
    ],
)
def test_the_narrowest_that_says_something_counts_and_of_several_the_oldest(policies, disabled):
    found = PeerAuthentications.of(objects(*policies), "ns")
    assert found.disable({"app": "llm", "x": "y"}, 8000) is disabled


def test_a_sidecar_that_takes_plaintext_alone_is_known_by_its_port():
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": "a",
            "namespace": "ns",
            "labels": {"app": "llm", "security.istio.io/tlsMode": "istio"},
        },
        "status": {"podIP": "10.0.0.1"},
    }
    pool = {
        "apiVersion": "inference.networking.k8s.io/v1",
        "kind": "InferencePool",
        "metadata": {"name": "p", "namespace": "ns"},
        "spec": {
            "selector": {"matchLabels": {"app": "llm"}},
            "targetPorts": [{"number": 8000}, {"number": 8001}],
        },
    }
    said = policy(labels={"app": "llm"}, ports={"8001": "DISABLE"})
    text = "\n---\n".join(map(json.dumps, (pod, pool, said)))
    (found,) = registry.pools(read(text, "x.yaml")).values()
    assert [each.mesh.sidecar for each in found.endpoints] == [True, True]
    assert [each.mesh.plaintext for each in found.endpoints] == [False, True]
