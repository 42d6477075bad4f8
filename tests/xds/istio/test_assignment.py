"""Our assignments beside istiod's own for the same objects: only weights and priorities differ."""

import json
from pathlib import Path

import pytest
from google.protobuf.json_format import MessageToDict

from xds import registry
from xds.istio import assignment as istio
from xds.manifests import read
from xds.plane import Plane
from xds.pool import Endpoint, IstioCluster, Mesh, Share
from xds.proto.envoy.config.endpoint.v3 import endpoint_pb2
from xds.snapshot import TypeUrl
from xds.standalone import Standalone

ISTIOD = Path(__file__).parents[3] / "integration" / "istiod"
POOL = "outbound|54321||llm-pool-ip-1c222a41.ns.svc.cluster.local"
SECOND = "outbound|8000||llm-weir.ns.svc.cluster.local"
VIP = "inbound-vip|8000|http|llm.ns.svc.cluster.local"


def theirs(unpatched):
    document = json.loads((ISTIOD / "unpatched" / unpatched / "endpoints.json").read_text())
    return {each["cluster_name"]: each for each in document}


def ours():
    manifests = read((ISTIOD / "kubernetes.yaml").read_text(), "kubernetes.yaml")
    plane = Plane(Standalone(listen="127.0.0.1:1", picker="127.0.0.1:2"))
    plane.configure(registry.pools(manifests, "cluster.local"), 0.0)
    resources = plane.snapshot(0.0)
    return {
        name: decoded(each.body) for name, each in resources.types[TypeUrl.ENDPOINT].by_name.items()
    }


def decoded(body):
    message = endpoint_pb2.ClusterLoadAssignment.FromString(body)
    return MessageToDict(message, preserving_proto_field_name=True)


def unweighed(value):
    if isinstance(value, dict):
        return {
            key: unweighed(each)
            for key, each in value.items()
            if key not in ("load_balancing_weight", "priority")
        }
    return [unweighed(each) for each in value] if isinstance(value, list) else value


@pytest.mark.parametrize(
    ("unpatched", "cluster"),
    [
        ("gateway", POOL),
        ("gateway", SECOND),
        ("waypoint-second-service", SECOND),
        ("waypoint-second-service", VIP),
    ],
)
def test_only_weights_and_priorities_differ_from_istiods(unpatched, cluster):
    assert unweighed(ours()[cluster]) == unweighed(theirs(unpatched)[cluster])


def test_every_istio_cluster_belongs_to_its_pool_and_none_is_served_unasked():
    manifests = read((ISTIOD / "kubernetes.yaml").read_text(), "kubernetes.yaml")
    plane = Plane(Standalone(listen="127.0.0.1:1", picker="127.0.0.1:2"))
    plane.configure(registry.pools(manifests, "cluster.local"), 0.0)
    owners = plane.snapshot(0.0).owners
    assert {owners[name] for name in (POOL, SECOND, VIP, "ns/llm-pool")} == {"ns/llm-pool"}
    plane.configure(registry.pools(manifests), 1.0)
    assert set(plane.snapshot(1.0).owners) == {"ns/llm-pool"}


def test_a_shadow_services_name_is_istiods_and_fits():
    assert istio.shadow_service("llm-pool") == "llm-pool-ip-1c222a41"
    assert len(istio.shadow_service("x" * 253)) == 63


# Each row names where istiod does it.
@pytest.mark.parametrize(
    ("mesh", "vip", "address", "metadata"),
    [
        # endpoint_builder.go buildEnvoyLbEndpoint: a captured Pod, from a gateway or outbound
        (
            Mesh(captured=True),
            False,
            "internal",
            {
                "envoy.filters.listener.original_dst": {"local": "10.0.0.1:8000"},
                "envoy.transport_socket_match": {"tunnel": "http"},
            },
        ),
        # the same, in the waypoint's own cluster: its socket has no matches
        (
            Mesh(captured=True),
            True,
            "internal",
            {"envoy.filters.listener.original_dst": {"local": "10.0.0.1:8000"}},
        ),
        # util.AppendLbEndpointMetadata: a sidecar keeps its own mTLS
        (
            Mesh(sidecar=True),
            False,
            "socket",
            {"envoy.transport_socket_match": {"tlsMode": "istio"}},
        ),
        # a sidecar that takes HBONE too: its own mTLS first, but for a vip
        (
            Mesh(captured=True, sidecar=True),
            False,
            "socket",
            {"envoy.transport_socket_match": {"tlsMode": "istio"}},
        ),
        (
            Mesh(captured=True, sidecar=True),
            True,
            "internal",
            {
                "envoy.filters.listener.original_dst": {"local": "10.0.0.1:8000"},
                "envoy.transport_socket_match": {"tlsMode": "istio"},
            },
        ),
        # mtls_checker.go: a sidecar whose PeerAuthentication disables mutual TLS
        (Mesh(sidecar=True, plaintext=True), False, "socket", {}),
        # and the same Pod is no more tunnelled to than before
        (Mesh(captured=True, sidecar=True, plaintext=True), False, "socket", {}),
        # out of the mesh: plain
        (Mesh(), False, "socket", {}),
    ],
)
def test_an_endpoint_is_reached_as_its_pod_is_in_the_mesh(mesh, vip, address, metadata):
    one = Endpoint("10.0.0.1:8000", "ns/a", "10.0.0.1", 8000, mesh=mesh)
    body = istio.assignment(IstioCluster("c", vip=vip), [one], {one.id: Share(7)})
    (item,) = decoded(body)["endpoints"][0]["lb_endpoints"]
    assert next(iter(item["endpoint"]["address"])).count(address)
    found = dict(item["metadata"]["filter_metadata"])
    assert found.pop("istio") == {"workload": ""}
    assert found == metadata


@pytest.mark.parametrize("vip", [False, True])
@pytest.mark.parametrize("sidecar", [False, True])
@pytest.mark.parametrize("address", ["10.0.0.1", "2001:db8::1"])
def test_without_tunnels_an_assignment_is_that_of_pods_that_take_none(vip, sidecar, address):
    """endpoint_builder.go: DisableHBONESend, and clients of gRPC's own."""
    host = f"[{address}]" if ":" in address else address
    cluster, name = IstioCluster("c", vip=vip), f"{host}:8000"
    bodies = [
        istio.assignment(
            cluster,
            [
                Endpoint(
                    name,
                    "ns/a",
                    address,
                    8000,
                    mesh=Mesh(captured, sidecar, workload="w", region="eu"),
                )
            ],
            {name: Share(7, 1)},
            echo=True,
        )
        for captured in (True, False)
    ]
    assert istio.without_tunnels(bodies[0]) == bodies[1]
    assert istio.without_tunnels(bodies[1]) == bodies[1]


@pytest.mark.parametrize(
    ("labels", "annotations", "captured", "sidecar"),
    [
        ({}, {"ambient.istio.io/redirection": "enabled"}, True, False),
        ({}, {"ambient.istio.io/redirection": "pending"}, False, False),
        ({"networking.istio.io/tunnel": "http"}, {}, True, False),
        ({"security.istio.io/tlsMode": "istio"}, {}, False, True),
        (
            {"security.istio.io/tlsMode": "disabled"},
            {"sidecar.istio.io/status": "{}"},
            False,
            False,
        ),
        ({}, {"sidecar.istio.io/status": "{}"}, False, False),
    ],
)
def test_how_a_pod_takes_requests_is_read_where_istiod_reads_it(
    labels, annotations, captured, sidecar
):
    """Seen of istiod 1.32-dev: a sidecar's label counts, not what the injector annotates."""
    mesh = istio.mesh("w", "ns", labels, annotations)
    assert (mesh.captured, mesh.sidecar) == (captured, sidecar)


def test_localities_follow_the_pods_and_weigh_what_their_endpoints_do():
    members = [
        Endpoint(f"10.0.0.{n}:80", f"ns/{n}", f"10.0.0.{n}", 80, mesh=Mesh(region="r", zone=zone))
        for n, zone in ((1, "a"), (2, "b"), (3, "a"), (4, "a"))
    ]
    shares = {each.id: Share(10 * n, n == 4) for n, each in enumerate(members, 1)}
    found = decoded(istio.assignment(IstioCluster("c"), members, shares))["endpoints"]
    assert [
        (each["locality"]["zone"], each.get("priority", 0), each["load_balancing_weight"])
        for each in found
    ] == [("a", 0, 40), ("b", 0, 20), ("a", 1, 40)]


def test_a_services_cluster_has_its_own_target_port_only_and_contiguous_priorities():
    members = [
        Endpoint(f"10.0.0.1:{port}", "ns/1", "10.0.0.1", port) for port in (8000, 8001, 8002)
    ]
    shares = {members[0].id: Share(1), members[1].id: Share(2, 1), members[2].id: Share(3, 1)}
    (only,) = decoded(istio.assignment(IstioCluster("c", 8001), members, shares))["endpoints"]
    assert len(only["lb_endpoints"]) == 1
    assert "priority" not in only, "nobody is before it in this cluster"


def test_an_ipv6_pod_is_a_bracketed_tunnel_destination_and_a_bare_socket_address():
    for mesh, wanted in (
        (Mesh(captured=True), {"envoy_internal_address", "[2001:db8::1]:80"}),
        (Mesh(), {"socket_address", "2001:db8::1"}),
    ):
        one = Endpoint("[2001:db8::1]:80", "ns/a", "2001:db8::1", 80, mesh=mesh)
        body = istio.assignment(IstioCluster("c"), [one], {one.id: Share(1)})
        text = json.dumps(decoded(body))
        assert all(each in text for each in wanted)


@pytest.mark.parametrize(
    ("labels", "owner", "workload"),
    [
        ({}, None, "llm-0;ns;llm-0;;Kubernetes"),
        ({"app": "a"}, None, "llm-0;ns;a;;Kubernetes"),
        ({"app": "a", "version": "v2"}, None, "llm-0;ns;a;v2;Kubernetes"),
        ({"app": "a", "version": "latest"}, None, "llm-0;ns;a;;Kubernetes"),
        (
            {"pod-template-hash": "5d4f", "service.istio.io/canonical-name": "c", "app": "a"},
            {"kind": "ReplicaSet", "name": "llm-5d4f"},
            "llm;ns;c;;Kubernetes",
        ),
        ({}, {"kind": "StatefulSet", "name": "llm"}, "llm;ns;llm;;Kubernetes"),
    ],
)
def test_a_workload_is_named_as_istiod_names_it(labels, owner, workload):
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": "llm-0",
            "namespace": "ns",
            "labels": {"sel": "x", **labels},
            "ownerReferences": [owner] if owner else [],
        },
        "status": {"podIP": "10.0.0.1"},
    }
    pool = {
        "apiVersion": "inference.networking.k8s.io/v1",
        "kind": "InferencePool",
        "metadata": {"name": "p", "namespace": "ns"},
        "spec": {"selector": {"matchLabels": {"sel": "x"}}, "targetPorts": [{"number": 80}]},
    }
    manifests = [*read(json.dumps(pod), "pod.json"), *read(json.dumps(pool), "pool.json")]
    (endpoint,) = registry.pools(manifests)["ns/p"].endpoints
    assert endpoint.mesh.workload == workload


def test_a_service_of_another_selector_namespace_or_port_is_not_the_pools():
    text = (ISTIOD / "kubernetes.yaml").read_text()
    for before, after in (
        ("  selector: {app: llm}", "  selector: {app: other}"),
        ("targetPort: 8000", "targetPort: 9000"),
        ("targetPort: 8000", "targetPort: http"),
    ):
        manifests = read(text.replace(before, after), "kubernetes.yaml")
        clusters = registry.pools(manifests, "cluster.local")["ns/llm-pool"].istio_clusters
        assert [each.name for each in clusters] == [POOL]


def test_the_pools_own_service_brings_no_cluster_beside_the_one_of_all_target_ports():
    text = (ISTIOD / "kubernetes.yaml").read_text()
    text = text.replace(
        "targetPorts: [{number: 8000}]", "targetPorts: [{number: 8000}, {number: 1}]"
    )
    own = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "llm-pool-ip-1c222a41", "namespace": "ns"},
        "spec": {"selector": {"app": "llm"}, "ports": [{"port": 54321, "targetPort": 8000}]},
    }
    manifests = [*read(text, "kubernetes.yaml"), *read(json.dumps(own), "own.json")]
    clusters = registry.pools(manifests, "cluster.local")["ns/llm-pool"].istio_clusters
    assert [each.target_port for each in clusters if each.name == POOL] == [None]
    assert not any("inbound-vip|54321" in each.name for each in clusters)


REGION, ZONE = "topology.kubernetes.io/region", "topology.kubernetes.io/zone"


@pytest.mark.parametrize(
    ("pod", "node", "place"),
    [
        ({}, {}, ("", "", "")),
        ({}, {REGION: "eu", ZONE: "eu-1"}, ("eu", "eu-1", "")),
        ({}, {REGION: "eu", "topology.istio.io/subzone": "rack"}, ("eu", "", "rack")),
        ({}, {"failure-domain.beta.kubernetes.io/region": "old"}, ("old", "", "")),
        ({ZONE: "pod"}, {ZONE: "node"}, ("", "node", "")),
        ({ZONE: "pod"}, {}, ("", "pod", "")),
        ({"istio-locality": "eu.eu-1.rack"}, {ZONE: "node"}, ("eu", "eu-1", "rack")),
        ({"istio-locality": "eu/eu-1"}, {}, ("eu", "eu-1", "")),
    ],
)
def test_a_place_is_the_pods_by_name_else_its_nodes_else_its_own(pod, node, place):
    """pilot/pkg/serviceregistry/kube/controller/controller.go: getPodLocality."""
    assert istio.locality(pod, node) == place
