"""The manifests as Helm and kustomize render them, and that what they start works.

Needs helm, and kustomize or kubectl: `make helm` and `make kustomize` build them with Go, which
`make integration` does by itself where there is a Go.
"""

import asyncio
import json
import os
import shutil
import subprocess
import sys
from contextlib import asynccontextmanager, suppress

import grpc
import grpc.aio
import pytest
import yaml

from picker.server import SERVICE
from tests.certificates import Authority
from tests.manifests import checks, objects
from tests.manifests.objects import CHART, KUSTOMIZE, OVERLAYS, ROOT, comparable, index, name
from weir import picker, serve
from weir.bench import manifests
from weir.bench.picker import servers, session
from weir.envoy import envoy_binary
from weir.ports import free
from weir.processes import running, weir
from weir.stack import wait_until
from xds.standalone import bootstrap

COMMANDS = {"weir-xds": serve.command, "weir-picker": picker.command}
TLS, MESH = "/var/run/secrets/weir/tls", "/var/run/secrets/weir/mesh"
SILENT = {"controller": {"writeStatus": False}}
FULL = {
    "controller": {"manageEnvoyFilters": True},
    "authorizationPolicy": {
        "enabled": True,
        "principals": ["cluster.local/ns/default/sa/waypoint"],
    },
    "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
}
SCRAPING = {"enabled": True}
CALLERS = {"enabled": True, "allow": ["default/inference-gateway-istio"]}
PLACED = {
    "podLabels": {"team": "search"},
    "podAnnotations": {"note": "yes"},
    "nodeSelector": {"disk": "ssd"},
    "tolerations": [{"key": "gpu", "operator": "Exists"}],
    "affinity": {"podAntiAffinity": {}},
    "priorityClassName": "system-cluster-critical",
}
SCENARIOS = {
    "certificates": {"security": {"clients": "certificates"}},
    "cert-manager": {"security": {"clients": "certificates", "certManager": {"enabled": True}}},
    "tokens": {"security": {"clients": "tokens", "certManager": {"enabled": True}}},
    "plaintext": {"security": {"clients": "plaintext"}},
    "no status": {"security": {"clients": "certificates"}, "namespaces": ["a"], **SILENT},
    "everything": {"security": {"clients": "tokens"}, **FULL},
    "namespaces": {"security": {"clients": "tokens"}, "namespaces": ["a", "b"], **FULL},
    "scraping with a certificate of its own": {
        "security": {"clients": "plaintext", "certManager": {"enabled": True}},
        "meshScraping": SCRAPING,
    },
    "scraping with a Secret of yours": {
        "security": {"clients": "tokens"},
        "meshScraping": SCRAPING | {"secretName": "mesh", "trustDomain": "example.org"},
    },
    "picker with TLS": {
        "security": {"clients": "certificates", "certManager": {"enabled": True}},
        "meshScraping": SCRAPING,
        "picker": {"captured": False, "tls": CALLERS},
    },
    "placed": {
        "security": {
            "clients": "certificates",
            "grants": [{"namespace": "edge", "pools": ["team/*"]}],
        },
        "image": {"digest": f"sha256:{'0' * 64}", "pullSecrets": ["registry"]},
        "xds": PLACED | {"extraArgs": ["--access-log=/dev/stdout"]},
        "picker": PLACED | {"pool": "default/llama"},
        "networkPolicy": {
            "proxyNamespaces": ["edge"],
            "apiServerCIDRs": ["10.0.0.1/32"],
            "metricsFrom": [{"namespaceSelector": {"matchLabels": {"name": "monitoring"}}}],
            "modelServers": [{"ipBlock": {"cidr": "10.1.0.0/16"}}],
        },
    },
    "placed envoy": {
        "istio": {"enabled": False},
        "security": {"clients": "plaintext"},
        "envoy": PLACED | {"enabled": True, "service": {"type": "LoadBalancer"}},
    },
}
# Components of kustomize on the base, and the values of the chart that are the same.
COMPOSITIONS = {
    "tokens": ({"istio", "tokens"}, {"security": {"clients": "tokens"}}),
    "plaintext": ({"istio", "plaintext"}, {"security": {"clients": "plaintext"}}),
    "no status": (
        {"istio", "plaintext", "no-status"},
        {"security": {"clients": "plaintext"}, **SILENT},
    ),
    "everything": (
        {"istio", "certificates", "envoyfilters", "service-monitor", "authorization-policy"}
        | {"mesh-scraping"},
        {
            "security": {"clients": "certificates"},
            **FULL,
            "serviceMonitor": {"enabled": True},
            "meshScraping": SCRAPING,
        },
    ),
    "picker with TLS": (
        {"istio", "certificates", "picker-tls"},
        {
            "security": {"clients": "certificates"},
            "picker": {"captured": False, "tls": CALLERS},
        },
    ),
}


@pytest.fixture
def chart(tmp_path):
    """Renders the chart with values given as a mapping."""

    def render(values=None, *arguments):
        file = tmp_path / "values.yaml"
        file.write_text(json.dumps(values or {}))
        return rendered(objects.template, f"--values={file}", *arguments)

    return render


def rendered(render, *arguments):
    try:
        return render(*arguments)
    except objects.Missing as error:
        pytest.skip(str(error))


def of_overlay(overlay):
    return rendered(objects.kustomize, KUSTOMIZE / "overlays" / overlay)


def of_chart(overlay):
    return rendered(objects.template, f"--values={CHART}/ci/{overlay}-values.yaml")


def by_name(found):
    """Comparable objects; without those that only one of Helm and kustomize has by design."""
    return {
        name(each): each
        for each in map(comparable, found)
        if each["kind"] != "Namespace" and each["metadata"]["name"] != "weir-status"
    }


def sound(found):
    """What is wrong with a whole installation."""
    problems = [problem for each in found for problem in checks.invalid(each)]
    for each, _, pod in checks.pods(found):
        problems += [f"{name(each)}: {problem}" for problem in checks.unrestricted(pod)]
    return [*problems, *checks.overpowered(found), *checks.loose_ends(found)]


@pytest.mark.parametrize("values", SCENARIOS.values(), ids=SCENARIOS)
def test_the_chart_renders_to_sound_objects(chart, values):
    assert sound(chart(values)) == []


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_overlay_renders_to_sound_objects(overlay):
    assert sound(of_overlay(overlay)) == []


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_overlay_and_the_chart_with_its_values_are_the_same_objects(overlay):
    assert by_name(of_overlay(overlay)) == by_name(of_chart(overlay))


def in_order(components):
    """What uses a volume comes after what makes it."""
    late = {"mesh-scraping", "picker-tls"}
    return [*sorted(components - late), *sorted(components & late)]


@pytest.mark.parametrize("composition", COMPOSITIONS)
def test_components_on_the_base_and_the_chart_are_the_same_objects(chart, tmp_path, composition):
    components, values = COMPOSITIONS[composition]
    base = os.path.relpath(KUSTOMIZE, tmp_path.resolve())
    content = {
        "resources": [f"{base}/overlays/waypoint/../../base"],
        "components": [f"{base}/components/{each}" for each in in_order(components)],
    }
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(content))
    ours = by_name(rendered(objects.kustomize, tmp_path))
    theirs = by_name(chart(values))
    # Which proxies come, and whether ztunnel captures the picker, is for overlays to say.
    for found in (ours, theirs):
        for each in ("xds", "picker"):
            found[f"NetworkPolicy weir/weir-{each}"]["spec"].pop("ingress")
        pod = found["Deployment weir/weir-picker"]["spec"]["template"]
        pod["metadata"]["labels"].pop("istio.io/dataplane-mode", None)
    assert ours == theirs


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_helm_finds_nothing_to_say_against_the_chart(overlay):
    values = f"--values={CHART}/ci/{overlay}-values.yaml"
    output = rendered(lambda: objects.helm("lint", "--strict", values))
    assert "0 chart(s) failed" in output


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "security.clients: say how proxies prove who they are"),
        ({"security": {"client": "plaintext"}}, "client"),
        ({"xds": {"replicaCount": 3}}, "replicaCount"),
        (
            {"security": {"clients": "plaintext"}, "networkPolicy": {"enabled": False}},
            "leave networkPolicy.enabled=true",
        ),
        (
            {"security": {"clients": "plaintext"}, "envoy": {"enabled": True}},
            "set istio.enabled=false",
        ),
        (
            {"security": {"clients": "tokens"}, "envoy": {"enabled": True}},
            "set security.clients=plaintext",
        ),
        (
            {
                "security": {"clients": "plaintext"},
                "istio": {"enabled": False},
                "controller": {"manageEnvoyFilters": True},
            },
            "needs istio.enabled=true",
        ),
        (
            {
                "security": {"clients": "plaintext"},
                "picker": {"captured": False},
                "authorizationPolicy": {"enabled": True, "principals": ["a/ns/b/sa/c"]},
            },
            "picker.captured=true",
        ),
        (
            {
                "security": {"clients": "plaintext"},
                "istio": {"enabled": False},
                "meshScraping": SCRAPING,
            },
            "needs istio.enabled=true",
        ),
        (
            {"security": {"clients": "tokens"}, "picker": {"captured": False, "tls": CALLERS}},
            "security.clients=certificates",
        ),
        (
            {"security": {"clients": "certificates"}, "picker": {"tls": CALLERS}},
            "set picker.captured=false",
        ),
    ],
)
def test_values_that_make_no_sense_are_refused_with_the_way_out(chart, values, message):
    with pytest.raises(subprocess.CalledProcessError) as failure:
        chart(values)
    assert message in failure.value.stderr


def test_the_control_plane_is_never_captured_and_the_picker_is_where_asked(chart):
    for captured, label, port in ((True, "ambient", 15008), (False, "none", 9002)):
        values = {"security": {"clients": "certificates"}, "picker": {"captured": captured}}
        found = index(chart(values))
        labels = {
            each: found[f"Deployment/{each}"]["spec"]["template"]["metadata"]["labels"]
            for each in COMMANDS
        }
        assert labels["weir-xds"]["istio.io/dataplane-mode"] == "none"
        assert labels["weir-picker"]["istio.io/dataplane-mode"] == label
        first = found["NetworkPolicy/weir-picker"]["spec"]["ingress"][0]
        assert first["ports"] == [{"port": port}]
        assert first["from"][0]["podSelector"]["matchExpressions"][0]["key"] == (
            "gateway.istio.io/managed"
        )


def test_without_istio_nothing_of_istio_is_there():
    assert "istio" not in json.dumps(of_chart("standalone")).replace("--istio-domain", "")
    assert "--istio-domain" not in json.dumps(of_chart("standalone"))


def test_istiod_finds_grpc_on_the_ports_that_it_makes_clusters_of(chart):
    found = index(chart({"security": {"clients": "plaintext"}}))
    ports = {
        (each, port["name"]): port["port"]
        for each in COMMANDS
        for port in found[f"Service/{each}"]["spec"]["ports"]
    }
    assert ports["weir-xds", "grpc-xds"] == 15010
    assert ports["weir-picker", "grpc-ext-proc"] == 9002


@pytest.mark.parametrize("captured", [True, False])
def test_metrics_of_both_programs_are_served_found_and_let_through(chart, captured):
    peer = {"namespaceSelector": {"matchLabels": {"name": "monitoring"}}}
    found = index(
        chart(
            {
                "security": {"clients": "certificates"},
                "picker": {"captured": captured},
                "serviceMonitor": {"enabled": True},
                "networkPolicy": {"metricsFrom": [peer]},
            }
        )
    )
    for each, argument in (("weir-xds", "--status=:15014"), ("weir-picker", "--metrics=:15014")):
        pod = found[f"Deployment/{each}"]["spec"]["template"]["spec"]["containers"][0]
        assert argument in pod["args"]
        (endpoint,) = found[f"ServiceMonitor/{each}"]["spec"]["endpoints"]
        (port,) = [
            port
            for port in found[f"Service/{each}"]["spec"]["ports"]
            if port["name"] == endpoint["port"]
        ]
        assert {"name": port["targetPort"], "containerPort": 15014} in pod["ports"]
        opened = [
            {each["port"] for each in rule["ports"]}
            for rule in found[f"NetworkPolicy/{each}"]["spec"]["ingress"]
            if peer in rule["from"]
        ]
        # What is captured is reached through HBONE by whoever is captured, too.
        assert opened == [{15014, 15008} if captured and each == "weir-picker" else {15014}]


@pytest.mark.parametrize(
    ("values", "directory", "secret", "domain"),
    [
        ({"security": {"clients": "certificates"}}, TLS, "weir-xds-tls", "cluster.local"),
        ({"security": {"clients": "plaintext"}}, MESH, "weir-xds-tls", "cluster.local"),
        ({"security": {"clients": "tokens"}}, TLS, "weir-xds-tls", "cluster.local"),
        (SCENARIOS["scraping with a Secret of yours"], MESH, "mesh", "example.org"),
    ],
)
def test_the_scraper_shows_the_mesh_certificate_that_it_is_given(
    chart, values, directory, secret, domain
):
    found = index(chart({"meshScraping": SCRAPING} | values))
    pod = found["Deployment/weir-xds"]["spec"]["template"]["spec"]
    (weir,) = pod["containers"]
    assert {
        f"--mesh-cert={directory}/tls.crt",
        f"--mesh-key={directory}/tls.key",
        f"--mesh-ca={directory}/ca.crt",
        f"--trust-domain={domain}",
    } <= set(weir["args"])
    (volume,) = [each["name"] for each in weir["volumeMounts"] if each["mountPath"] == directory]
    (source,) = [each for each in pod["volumes"] if each["name"] == volume]
    assert source["secret"]["secretName"] == secret
    # To any port of the model servers, 15008 among them.
    assert {"to": [{"namespaceSelector": {}}]} in (
        found["NetworkPolicy/weir-xds"]["spec"]["egress"]
    )


def test_with_namespaces_every_right_but_the_token_review_is_bound_to_them(chart):
    found = chart(SCENARIOS["namespaces"])
    kinds = {"Role", "ClusterRole"}
    roles = {(each["kind"], name(each)) for each in found if each["kind"] in kinds}
    assert roles == {
        ("ClusterRole", "ClusterRole /weir-xds-tokens-weir"),
        *(
            ("Role", f"Role {namespace}/{role}")
            for namespace in ("a", "b")
            for role in ("weir-xds", "weir-xds-istio", "weir-xds-envoyfilters")
        ),
    }
    cluster_wide = {right[:3] for right in checks.rights(found) if right[3] == "cluster"}
    assert cluster_wide == {("authentication.k8s.io", "tokenreviews", "create")}
    args = index(found)["Deployment/weir-xds"]["spec"]["template"]["spec"]["containers"][0]["args"]
    assert {"--namespace=a", "--namespace=b"} <= set(args)


@pytest.mark.parametrize("values", [SCENARIOS["certificates"], SCENARIOS["plaintext"]])
def test_envoyfilters_and_token_reviews_are_nobodys_right_unless_asked_for(chart, values):
    resources = {resource for _, resource, _, _ in checks.rights(chart(values))}
    assert not {"envoyfilters", "tokenreviews"} & resources


def test_without_status_nobody_may_write_any_and_nobody_tries(chart):
    found = chart(SCENARIOS["no status"])
    assert {verb for _, _, verb, _ in checks.rights(found)} == {"get", "list", "watch"}
    args = index(found)["Deployment/weir-xds"]["spec"]["template"]["spec"]["containers"][0]["args"]
    assert "--no-write-status" in args


def test_the_picker_gets_the_ca_and_its_own_token_and_never_the_control_planes_key(chart):
    found = index(chart(SCENARIOS["tokens"]))
    volumes = found["Deployment/weir-picker"]["spec"]["template"]["spec"]["volumes"]
    (tls,) = [each["secret"] for each in volumes if "secret" in each]
    assert tls["items"] == [{"key": "ca.crt", "path": "ca.crt"}]
    (token,) = [each["projected"]["sources"] for each in volumes if "projected" in each]
    assert token[0]["serviceAccountToken"]["audience"] == "weir"


def test_changed_grants_start_the_control_plane_anew(chart):
    def checksum(*grants):
        values = {"security": {"clients": "certificates", "grants": list(grants)}}
        template = index(chart(values))["Deployment/weir-xds"]["spec"]["template"]
        return template["metadata"]["annotations"]["checksum/grants"]

    grant = {"namespace": "edge", "pools": ["*"]}
    assert checksum() == checksum() != checksum(grant)


@pytest.mark.parametrize("values", SCENARIOS.values(), ids=SCENARIOS)
def test_the_notes_say_what_comes_next_and_warn_of_what_was_asked_for(tmp_path, values):
    copy = tmp_path / "weir"
    shutil.copytree(CHART, copy)
    (copy / "templates/notes.yaml").write_text(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: notes}\n"
        'data: {notes: {{ include "weir.notes" . | toJson }}}\n'
    )
    file = tmp_path / "values.yaml"
    file.write_text(json.dumps(values))
    found = rendered(lambda: objects.template(f"--values={file}", chart=copy))
    notes = index(found)["ConfigMap/notes"]["data"]["notes"]
    assert "rollout status deployment/weir-xds deployment/weir-picker" in notes
    assert "weir status --status 127.0.0.1:15014" in notes
    clients = values["security"]["clients"]
    assert ("is plaintext" in notes) == (clients == "plaintext")
    manages = values.get("controller", {}).get("manageEnvoyFilters", False)
    assert ("can rewrite any proxy" in notes) == manages
    assert ("weir istio manifests" in notes) == ("envoy" not in values)
    made = values["security"].get("certManager", {}).get("enabled", False)
    assert ("Pods wait for what you bring" in notes) == (clients != "plaintext" and not made)
    own = values.get("meshScraping", {}).get("secretName", "")
    assert (f"waits for the Secret {own}" in notes) == bool(own)
    assert ("--picker weir-picker.weir.svc.cluster.local:9002" in notes) == ("envoy" not in values)


@pytest.mark.envoy
def test_envoy_accepts_its_bootstrap_and_weir_prints_the_same(tmp_path):
    text = index(of_chart("standalone"))["ConfigMap/weir-envoy"]["data"]["envoy.yaml"]
    ours = bootstrap("weir-xds.weir.svc:15010", 19000, "weir-envoy")
    assert yaml.safe_load(text) == yaml.safe_load(ours)
    file = tmp_path / "envoy.yaml"
    file.write_text(text)
    command = [envoy_binary(), "--mode", "validate", "--config-path", file]
    subprocess.run([*command, "--use-dynamic-base-id"], check=True, capture_output=True)


def container(found, deployment):
    return index(found)[f"Deployment/{deployment}"]["spec"]["template"]["spec"]["containers"][0]


def arguments(found, deployment, replaced):
    """The container's arguments for this machine: addresses and files are other ones here.

    Pools come from a directory: there is no API server.
    """
    for argument in container(found, deployment)["args"]:
        changed = argument
        for theirs, ours in replaced.items():
            changed = changed.replace(theirs, str(ours))
        yield changed


@asynccontextmanager
async def programs(directory, found, replaced):
    """`weir serve` and `weir picker`, started as the Deployments say; yields the status port."""
    status = free()
    replaced = {
        "--kubernetes": f"--config={directory}/config",
        "--status=:15014": f"--status=127.0.0.1:{status}",
        **replaced,
    }
    commands = {each: weir(*arguments(found, each, replaced)) for each in COMMANDS}
    async with running("xds", commands["weir-xds"], directory / "xds.log") as xds:
        await xds.until_logged("serving")
        log = directory / "picker.log"
        async with running("picker", commands["weir-picker"], log) as endpoint_picker:
            await endpoint_picker.until_logged("connected to the control plane")
            yield status


async def clients(client, status):
    async with client.get(f"http://127.0.0.1:{status}/status") as response:
        return (await response.json())["clients"]


def certified(tmp_path, found):
    """What replaces addresses and files of an installation with certificates, and their authority.

    The identities and files are those that the chart's Certificates and Deployments name.
    """
    authority = Authority(tmp_path / "ca")
    replaced = {
        "[::]:15012": f"127.0.0.1:{free()}",
        "[::]:9002": f"127.0.0.1:{free()}",
        "--metrics=:15014": f"--metrics=127.0.0.1:{free()}",
    }
    replaced["weir-xds.weir.svc:15012"] = replaced["[::]:15012"]
    for each in COMMANDS:
        (uri,) = index(found)[f"Certificate/{each}"]["spec"]["uris"]
        certificate, key = authority.issue(each, spiffe=uri)
        (tmp_path / each).mkdir()
        for file, source in (("tls.crt", certificate), ("tls.key", key), ("ca.crt", authority.ca)):
            shutil.copy(source, tmp_path / each / file)
    grants = tmp_path / "grants.yaml"
    grants.write_text(index(found)["ConfigMap/weir-grants"]["data"]["grants.yaml"])
    replaced["/etc/weir/grants.yaml"] = grants
    for each in COMMANDS:
        args = container(found, each)["args"]
        args[:] = [argument.replace(TLS, str(tmp_path / each)) for argument in args]
    return replaced, authority


async def test_the_picker_shows_its_certificate_and_sees_pools_of_other_namespaces(chart, tmp_path):
    found = chart(SCENARIOS["cert-manager"])
    replaced, _ = certified(tmp_path, found)
    async with session() as client, servers(tmp_path, count=1) as endpoints:
        manifests.write(tmp_path / "config", endpoints, policy="pick")
        async with programs(tmp_path, found, replaced) as status:
            (one,) = await clients(client, status)
            assert one["identity"] == "weir/weir-picker"
            url = f"http://{replaced['--metrics=:15014'].partition('=')[2]}/metrics"
            async with client.get(url) as response:
                assert "weir_picker_connected 1.0" in await response.text()

            async def has_pool():
                (one,) = await clients(client, status)
                return any(each["has"] for each in one["types"].values())

            await wait_until(has_pool)


@pytest.mark.parametrize(
    ("account", "answer"),
    [
        ("default/sa/inference-gateway-istio", grpc.StatusCode.OK),
        ("default/sa/another", grpc.StatusCode.PERMISSION_DENIED),
    ],
)
async def test_the_picker_with_tls_answers_those_whom_the_values_allow(
    chart, tmp_path, account, answer
):
    found = chart(SCENARIOS["picker with TLS"])
    replaced, authority = certified(tmp_path, found)
    certificate, key = authority.issue("caller", spiffe=f"spiffe://cluster.local/ns/{account}")
    credentials = grpc.ssl_channel_credentials(
        authority.ca.read_bytes(), key.read_bytes(), certificate.read_bytes()
    )
    async with servers(tmp_path, count=1) as endpoints:
        manifests.write(tmp_path / "config", endpoints, policy="pick")
        async with (
            programs(tmp_path, found, replaced),
            grpc.aio.secure_channel(replaced["[::]:9002"], credentials) as channel,
        ):
            call = channel.stream_stream(f"/{SERVICE}/Process")(timeout=10)
            await call.done_writing()
            with suppress(grpc.aio.AioRpcError):
                await call.read()
            assert await call.code() is answer


@pytest.mark.envoy
async def test_the_standalone_overlay_answers_a_request(tmp_path):
    """Every program with the overlay's own arguments and bootstrap; addresses are other ones."""
    found = of_overlay("standalone")
    ports = {each: free() for each in ("xds", "picker", "proxy", "admin")}
    replaced = {
        "[::]:15010": f"127.0.0.1:{ports['xds']}",
        "weir-xds.weir.svc:15010": f"127.0.0.1:{ports['xds']}",
        "[::]:9002": f"127.0.0.1:{ports['picker']}",
        "--metrics=:15014": f"--metrics=127.0.0.1:{free()}",
        "weir-picker.weir.svc:9002": f"127.0.0.1:{ports['picker']}",
        "0.0.0.0:8080": f"127.0.0.1:{ports['proxy']}",
    }
    (text,) = [
        each["data"]["envoy.yaml"]
        for each in found
        if each["kind"] == "ConfigMap" and "envoy.yaml" in each["data"]
    ]
    file = tmp_path / "envoy.yaml"
    file.write_text(
        text.replace("weir-xds.weir.svc", "127.0.0.1")
        .replace("port_value: 15010", f"port_value: {ports['xds']}")
        .replace("port_value: 19000", f"port_value: {ports['admin']}")
    )
    replacing = {"/etc/envoy/envoy.yaml": str(file), "$(POD_NAME)": "weir-envoy-0"}
    envoy = [replacing.get(each, each) for each in container(found, "weir-envoy")["args"]]
    async with session() as client, servers(tmp_path, count=2) as endpoints:
        manifests.write(tmp_path / "config", endpoints, policy="pick")
        async with (
            programs(tmp_path, found, replaced) as status,
            running("envoy", [envoy_binary(), *envoy], tmp_path / "envoy.log"),
        ):

            async def served():
                known = await clients(client, status)
                return len(known) == 2 and all(each["synced"] for each in known)

            await wait_until(served)
            nodes = {each["node"] for each in await clients(client, status)}
            assert "weir-envoy-0" in nodes  # a node a Pod, not one for all
            url = f"http://127.0.0.1:{ports['proxy']}/v1/completions"
            body = {"model": "base", "prompt": "hello"}
            async with client.post(url, json=body) as response:
                assert response.status == 200


async def test_the_image_is_built_from_its_locks_and_runs(tmp_path):
    """The image's one build step, outside of a container: there is no base image in this test."""
    source = tmp_path / "source"
    source.mkdir()
    for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines():
        if line.startswith("!"):
            path = ROOT / line[1:]
            if path.is_dir():
                ignored = shutil.ignore_patterns("__pycache__", "*_pb2.py", "*_pb2.pyi")
                shutil.copytree(path, source / line[1:], ignore=ignored)
            else:
                shutil.copy(path, source / line[1:])
    step = [source / "manifests/image/install.sh", sys.executable, tmp_path / "weir"]
    process = await asyncio.create_subprocess_exec(*step)
    assert await process.wait() == 0
    for words in (["--version"], ["serve", "--help"], ["picker", "--help"]):
        subprocess.run([tmp_path / "weir/bin/weir", *words], check=True, capture_output=True)
    packages = tmp_path / "weir/lib"
    assert list(packages.glob("python3.*/site-packages/kubernetes"))  # the extra that it needs
    assert list(packages.glob("python3.*/site-packages/xds/proto/**/*_pb2.py"))
    assert not list(packages.glob("python3.*/site-packages/pip"))
