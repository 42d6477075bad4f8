"""The checks of the manifests find what they are there to find."""

import copy

import pytest
import yaml

from tests.manifests.checks import invalid, loose_ends, overpowered, unknown_flags, unrestricted
from tests.manifests.objects import KUSTOMIZE, comparable, documents
from weir.serve import command

GOOD = yaml.safe_load("""
securityContext: {runAsNonRoot: true, seccompProfile: {type: RuntimeDefault}}
containers:
  - name: c
    securityContext:
      allowPrivilegeEscalation: false
      readOnlyRootFilesystem: true
      capabilities: {drop: [ALL]}
volumes: [{name: tmp, emptyDir: {}}]
""")


def changed(path, value):
    """The good Pod with one field set, or taken away where `value` is None."""
    pod = copy.deepcopy(GOOD)
    at = pod
    *parents, last = path
    for parent in parents:
        at = at[parent] if isinstance(at, list) else at.setdefault(parent, {})
    if value is None:
        del at[last]
    else:
        at[last] = value
    return pod


CONTEXT = ("containers", 0, "securityContext")


def test_a_good_pod_has_no_violation():
    assert unrestricted(GOOD) == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("hostNetwork",), True),
        (("hostPID",), True),
        (("hostIPC",), True),
        (("volumes",), [{"name": "h", "hostPath": {"path": "/"}}]),
        (("volumes",), [{"name": "n", "nfs": {}}]),
        (("securityContext", "runAsNonRoot"), None),
        (("securityContext", "runAsNonRoot"), False),
        (("securityContext", "runAsUser"), 0),
        (("securityContext", "seccompProfile"), None),
        (("securityContext", "seccompProfile", "type"), "Unconfined"),
        (("securityContext", "sysctls"), [{"name": "kernel.msgmax", "value": "1"}]),
        ((*CONTEXT, "privileged"), True),
        ((*CONTEXT, "allowPrivilegeEscalation"), None),
        ((*CONTEXT, "allowPrivilegeEscalation"), True),
        ((*CONTEXT, "capabilities"), None),
        ((*CONTEXT, "capabilities", "drop"), ["NET_RAW"]),
        ((*CONTEXT, "capabilities", "add"), ["NET_ADMIN"]),
        ((*CONTEXT, "runAsUser"), 0),
        ((*CONTEXT, "runAsNonRoot"), False),
        ((*CONTEXT, "seccompProfile"), {"type": "Unconfined"}),
        ((*CONTEXT, "procMount"), "Unmasked"),
        ((*CONTEXT, "readOnlyRootFilesystem"), None),
        (("containers", 0, "ports"), [{"containerPort": 1, "hostPort": 1}]),
        (("initContainers",), [{"name": "i"}]),
    ],
)
def test_each_violation_of_pod_security_restricted_is_found(path, value):
    assert unrestricted(changed(path, value))


def test_a_misspelt_field_is_found_by_the_schemas_of_kubernetes():
    (deployment,) = (
        each
        for each in documents((KUSTOMIZE / "base/xds.yaml").read_text())
        if each["kind"] == "Deployment"
    )
    assert invalid(deployment) == []
    deployment["spec"]["template"]["spec"]["containers"][0]["readinesProbe"] = {}
    assert "readinesProbe" in invalid(deployment)[0]


def test_a_field_of_a_custom_resource_that_nobody_looked_up_is_found():
    file = KUSTOMIZE / "components/service-monitor/servicemonitor.yaml"
    monitor, *_ = documents(file.read_text())
    assert invalid(monitor) == []
    monitor["spec"]["endpoints"][0]["intervall"] = "15s"
    assert "intervall" in invalid(monitor)[0]


@pytest.mark.parametrize(
    "rule",
    [
        {"apiGroups": [""], "resources": ["secrets"], "verbs": ["get"]},
        {"apiGroups": ["*"], "resources": ["pods"], "verbs": ["get"]},
        {"apiGroups": [""], "resources": ["*"], "verbs": ["get"]},
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["*"]},
        {"apiGroups": [""], "resources": ["users"], "verbs": ["impersonate"]},
    ],
)
def test_a_right_that_is_too_large_is_found(rule):
    assert list(overpowered([{"kind": "Role", "rules": [rule]}]))


@pytest.mark.parametrize(
    ("kind", "path", "value", "problem"),
    [
        ("Service", ("spec", "selector"), {"app": "x"}, "Service /weir-xds selects nothing"),
        (
            "PodDisruptionBudget",
            ("spec", "selector", "matchLabels"),
            {"app": "x"},
            "PodDisruptionBudget /weir-xds selects nothing",
        ),
        (
            "Service",
            ("spec", "ports"),
            [{"targetPort": "grpc"}],
            "Service /weir-xds: no port {'grpc'} on Deployment /weir-xds",
        ),
        (
            "Deployment",
            ("spec", "template", "spec", "serviceAccountName"),
            "x",
            "Deployment /weir-xds: no ServiceAccount x",
        ),
        (
            "Deployment",
            ("spec", "template", "spec", "volumes"),
            [],
            "Deployment /weir-xds: mounts ['tmp'] of volumes []",
        ),
        (
            "ClusterRoleBinding",
            ("roleRef", "name"),
            "x",
            "ClusterRoleBinding /weir-xds-weir: no ClusterRole x",
        ),
        (
            "NetworkPolicy",
            ("spec", "ingress"),
            [],
            "Deployment /weir-xds: the NetworkPolicy closes {15014}",
        ),
    ],
)
def test_a_reference_that_leads_nowhere_is_found(kind, path, value, problem):
    files = ("rbac.yaml", "xds.yaml", "networkpolicy.yaml")
    texts = ((KUSTOMIZE / "base" / file).read_text() for file in files)
    objects = [each for text in texts for each in documents(text)]
    objects = [each for each in objects if each["metadata"]["name"] != "weir-picker"]
    assert list(loose_ends(objects)) == []
    (at,) = (each for each in objects if each["kind"] == kind)
    *parents, last = path
    for parent in parents:
        at = at[parent]
    at[last] = value
    assert problem in list(loose_ends(objects))


def test_a_flag_that_the_program_does_not_take_so_is_found():
    args = ["serve", "--plaintext", "--listen=1", "--lissten=1", "--plaintext=1", "--status"]
    found = ["--lissten", "--plaintext=1", "--status"]
    assert list(unknown_flags({"args": args}, command)) == found


def test_objects_that_differ_in_more_than_helms_labels_are_not_the_same():
    one = {"kind": "Service", "metadata": {"name": "a", "labels": {"helm.sh/chart": "weir-1"}}}
    two = {"kind": "Service", "metadata": {"name": "a"}}
    assert comparable(one) == comparable(two)
    assert comparable(one) != comparable(two | {"spec": {}})
