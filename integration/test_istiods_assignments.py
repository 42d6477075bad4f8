"""Weir's assignments beside a real istiod's: many kinds of Pods, as each kind of proxy has them.

Both look at one API server and are asked over xDS, by proxies that say the same of themselves.
Only weights and priorities differ, and that istiod lists a Pod that is not ready as UNHEALTHY where
Weir leaves it out: Envoy sends it nothing either way.
"""

from contextlib import asynccontextmanager

import pytest
import pytest_asyncio

from integration.cluster import MISSING, cluster
from integration.follower import following
from integration.mesh.istiod import POOL, SECOND, VIP
from integration.recording import objects
from tests.xds.istio.test_assignment import unweighed
from weir.ports import free
from weir.processes import start, weir
from xds.istio.assignment import shadow_service

pytestmark = [
    pytest.mark.skipif(bool(MISSING), reason=MISSING),
    pytest.mark.asyncio(loop_scope="module"),
]

CAPTURED = {"ambient.istio.io/redirection": "enabled"}
SIDECAR = {"security.istio.io/tlsMode": "istio"}
TUNNEL = {"networking.istio.io/tunnel": "http"}
# Labels and annotations; what else, by field of the Pod's status or spec.
PODS = {
    "captured": ({}, CAPTURED, {}),
    "capture-pending": ({}, {"ambient.istio.io/redirection": "pending"}, {}),
    "plain": ({}, {}, {}),
    "sidecar": (SIDECAR, {}, {}),
    "sidecar-by-annotation": ({}, {"sidecar.istio.io/status": "{}"}, {}),
    "sidecar-disabled": ({"security.istio.io/tlsMode": "disabled"}, {}, {}),
    "sidecar-with-tunnel": (SIDECAR | TUNNEL, {}, {}),
    "sidecar-captured": (SIDECAR, CAPTURED, {}),
    "sidecar-in-plaintext": (SIDECAR | {"plaintext": "yes"}, {}, {}),
    "captured-in-plaintext": (SIDECAR | {"plaintext": "yes"}, CAPTURED, {}),
    "tunnel": (TUNNEL, {}, {}),
    "in-a-zone": ({}, CAPTURED, {"nodeName": "zoned"}),
    "elsewhere": ({"istio-locality": "us.us-1.rack"}, {}, {"nodeName": "zoned"}),
    "named": ({"app.kubernetes.io/name": "model", "version": "v2"}, CAPTURED, {}),
    "canonical": ({"service.istio.io/canonical-name": "m", "version": "latest"}, {}, {}),
    "not-ready": ({}, CAPTURED, {"ready": "False"}),
    "finished": ({}, {}, {"phase": "Succeeded"}),
}
PROXIES = {
    "waypoint": ("waypoint", {"gateway.istio.io/managed": "istio.io-mesh-controller"}, {}),
    "gateway": ("router", {}, {}),
    "sidecar": ("sidecar", {}, {}),
    "gateway-without-tunnels": ("router", {}, {"DISABLE_HBONE_SEND": "true"}),
    "waypoint-without-tunnels": (
        "waypoint",
        {"gateway.istio.io/managed": "istio.io-mesh-controller"},
        {"DISABLE_HBONE_SEND": "true"},
    ),
    "grpc": ("sidecar", {}, {"GENERATOR": "grpc"}),
}
NODE = {
    "apiVersion": "v1",
    "kind": "Node",
    "metadata": {
        "name": "zoned",
        "labels": {
            "topology.kubernetes.io/region": "eu",
            "topology.kubernetes.io/zone": "eu-1",
            "topology.istio.io/subzone": "rack",
        },
    },
}
WIDE = f"outbound|54321||{shadow_service('wide')}.ns.svc.cluster.local"
BACKEND = {"group": "inference.networking.k8s.io", "kind": "InferencePool", "name": "wide"}
SEVERAL_PORTS = (
    {
        "apiVersion": "inference.networking.k8s.io/v1",
        "kind": "InferencePool",
        "metadata": {"name": "wide", "namespace": "ns"},
        "spec": {
            "selector": {"matchLabels": {"app": "llm"}},
            "targetPorts": [{"number": 8000}, {"number": 8001}],
            "endpointPickerRef": {"name": "llm-epp", "port": {"number": 9002}},
        },
    },
    {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "HTTPRoute",
        "metadata": {"name": "wide", "namespace": "ns"},
        "spec": {
            "parentRefs": [{"name": "inference-gateway"}],
            "rules": [{"backendRefs": [BACKEND]}],
        },
    },
)
IN_PLAINTEXT = {
    "apiVersion": "security.istio.io/v1",
    "kind": "PeerAuthentication",
    "metadata": {"name": "some", "namespace": "ns"},
    "spec": {
        "selector": {"matchLabels": {"plaintext": "yes"}},
        "portLevelMtls": {"8000": {"mode": "DISABLE"}},
    },
}


def pod(name, labels, annotations, more):
    address = f"127.0.1.{10 + list(PODS).index(name)}"
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": "ns",
            "labels": {"app": "llm", **labels},
            "annotations": annotations,
        },
        "spec": {
            "nodeName": more.get("nodeName", "n1"),
            "serviceAccountName": "llm",
            "containers": [{"name": "c", "image": "x"}],
        },
        "status": {
            "phase": more.get("phase", "Running"),
            "podIP": address,
            "podIPs": [{"ip": address}],
            "conditions": [{"type": "Ready", "status": more.get("ready", "True")}],
        },
    }


def node(name):
    kind, labels, metadata = PROXIES[name]
    gateway = {"waypoint": "waypoint", "router": "inference-gateway"}.get(kind)
    if gateway:
        labels = {"gateway.networking.k8s.io/gateway-name": gateway, **labels}
    return {
        "id": f"{kind}~127.0.9.9~proxy.ns~ns.svc.cluster.local",
        "metadata": {
            "NAMESPACE": "ns",
            "CLUSTER_ID": "Kubernetes",
            "ISTIO_VERSION": "1.32.0",
            "LABELS": labels,
            **metadata,
        },
    }


@asynccontextmanager
async def serving(made, directory):
    """`weir serve` on the same API server; gives its address."""
    address = f"127.0.0.1:{free()}"
    child = await start(
        "weir serve",
        weir(
            *("serve", "--kubernetes", "--kubeconfig", str(made.kubeconfig), "--plaintext"),
            *("--listen", address, "--status", f"127.0.0.1:{free()}"),
            *("--istio-domain", "cluster.local"),
        ),
        directory / "serve.log",
    )
    try:
        await child.until_logged("serving")
        yield address
    finally:
        await child.stop()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(tmp_path_factory):
    directory = tmp_path_factory.mktemp("cluster")
    there = [each for each in objects() if each["metadata"]["name"] not in ("llm-0", "llm-1")]
    pods = [pod(name, *PODS[name]) for name in PODS]
    async with (
        cluster(directory, NODE, *there, *pods, *SEVERAL_PORTS, IN_PLAINTEXT) as made,
        serving(made, directory) as weirs,
    ):
        yield made, weirs


def by_address(assignment):
    """Endpoints that take requests, in their localities, whatever the order and the weights."""
    return sorted(
        (
            str(locality.get("locality", {})),
            str(sorted(unweighed(each).items())),
        )
        for locality in assignment.get("endpoints", [])
        for each in locality["lb_endpoints"]
        if each["health_status"] != "UNHEALTHY"
    )


@pytest.mark.parametrize("name", [POOL, SECOND, VIP, WIDE])
@pytest.mark.parametrize("proxy", PROXIES)
async def test_only_weights_and_priorities_differ_from_istiods(running, proxy, name):
    made, weirs = running
    async with made.proxy(node(proxy)) as istiods, following(weirs, node(proxy)) as ours:
        for each in (istiods, ours):
            await each.ask(name)
            await each.until(lambda each=each: name in each.assignments)
        found, expected = (by_address(each.assignments[name]) for each in (ours, istiods))
    assert found == expected
