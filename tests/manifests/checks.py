"""What must hold for every object that we ship, as functions that return what is wrong."""

import json
from functools import cache
from importlib.resources import files

import jsonschema
import kubernetes_validate
import yaml

from tests.manifests.objects import index, name

OLDEST, NEWEST = "1.30", "1.37"  # of Kubernetes, as the chart's kubeVersion says
VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim"}
VOLUMES |= {"projected", "secret"}
POWERS = {"escalate", "bind", "impersonate", "*"}


def invalid(each):
    """Against Kubernetes' own schemas, oldest and newest; a custom resource against ours."""
    group = each["apiVersion"].rpartition("/")[0]
    if "." in group and not group.endswith("k8s.io"):
        schema = _custom(f"{each['kind']}.yaml")
        return [f"{name(each)}: {error.message}" for error in _errors(schema, each)]
    problems = []
    for version in (OLDEST, NEWEST):
        try:
            kubernetes_validate.validate(each, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            problems.append(f"{name(each)} ({version}): {error.message}")
    return problems


@cache
def _custom(file):
    return yaml.safe_load((files("tests.manifests") / "schemas" / file).read_text("utf-8"))


def _errors(schema, each):
    return jsonschema.Draft202012Validator(schema).iter_errors(each)


def pods(objects):
    """(object, Pod metadata, Pod spec) of whatever runs."""
    for each in objects:
        if each["kind"] == "Pod":
            yield each, each["metadata"], each["spec"]
        elif each["kind"] in ("Deployment", "DaemonSet", "StatefulSet", "Job"):
            template = each["spec"]["template"]
            yield each, template["metadata"], template["spec"]


def unrestricted(pod):
    """Violations of Kubernetes' Pod Security Standard "restricted", and of a read-only root."""
    problems = [
        f"{each} is not allowed" for each in ("hostNetwork", "hostPID", "hostIPC") if pod.get(each)
    ]
    for volume in pod.get("volumes", ()):
        problems += [f"volume type {kind}" for kind in volume.keys() - {"name"} - VOLUMES]
    ours = pod.get("securityContext", {})
    if ours.get("sysctls"):
        problems.append("sysctls")
    everything = pod.get("initContainers", []) + pod["containers"]
    for container in everything:
        problems += [f"{container['name']}: {each}" for each in _container(container, ours)]
    return problems


def _container(container, pod):
    context = container.get("securityContext", {})
    both = pod | context
    if context.get("privileged"):
        yield "privileged"
    if context.get("allowPrivilegeEscalation") is not False:
        yield "allowPrivilegeEscalation is not false"
    if both.get("runAsNonRoot") is not True:
        yield "runAsNonRoot is not true"
    if both.get("runAsUser") == 0:
        yield "runs as root"
    if both.get("seccompProfile", {}).get("type") not in ("RuntimeDefault", "Localhost"):
        yield "no seccomp profile"
    capabilities = context.get("capabilities", {})
    if "ALL" not in capabilities.get("drop", ()):
        yield "does not drop ALL capabilities"
    if set(capabilities.get("add", ())) - {"NET_BIND_SERVICE"}:
        yield "adds capabilities"
    if context.get("procMount", "Default") != "Default":
        yield "procMount"
    if any("hostPort" in port for port in container.get("ports", ())):
        yield "hostPort"
    if context.get("readOnlyRootFilesystem") is not True:
        yield "the root is writable"


def rights(objects):
    """(group, resource, verb, "cluster" or "namespace") that any of our accounts has."""
    for each in objects:
        if each["kind"] not in ("Role", "ClusterRole"):
            continue
        where = "cluster" if each["kind"] == "ClusterRole" else "namespace"
        for rule in each["rules"]:
            for group in rule["apiGroups"]:
                for resource in rule["resources"]:
                    yield from ((group, resource, verb, where) for verb in rule["verbs"])


def overpowered(objects):
    """Rights that nobody of ours may have, whatever the values."""
    for group, resource, verb, _ in rights(objects):
        if "*" in (group, resource) or verb in POWERS or resource.split("/")[0] == "secrets":
            yield f"{verb} {resource}.{group}"


def loose_ends(objects):
    """References between our objects that lead nowhere."""
    found = index(objects)
    labels = [metadata.get("labels", {}) for _, metadata, _ in pods(objects)]

    def selects(selector):
        return any(selector.items() <= each.items() for each in labels)

    for each in objects:
        spec = each.get("spec", {})
        selector = {
            "Service": spec.get("selector"),
            "PodDisruptionBudget": spec.get("selector", {}).get("matchLabels"),
            "NetworkPolicy": spec.get("podSelector", {}).get("matchLabels"),
            "AuthorizationPolicy": spec.get("selector", {}).get("matchLabels"),
        }.get(each["kind"])
        if selector is not None and not selects(selector):
            yield f"{name(each)} selects nothing"
        if each["kind"] in ("RoleBinding", "ClusterRoleBinding"):
            yield from _unbound(each, found)
    for each, _, pod in pods(objects):
        account = pod.get("serviceAccountName")
        if account and f"ServiceAccount/{account}" not in found:
            yield f"{name(each)}: no ServiceAccount {account}"
        yield from (f"{name(each)}: {problem}" for problem in _unmounted(pod, found))
    yield from _unserved(objects)


def _unbound(binding, found):
    role = binding["roleRef"]
    if f"{role['kind']}/{role['name']}" not in found:
        yield f"{name(binding)}: no {role['kind']} {role['name']}"
    for subject in binding["subjects"]:
        if f"{subject['kind']}/{subject['name']}" not in found:
            yield f"{name(binding)}: no {subject['kind']} {subject['name']}"


def _unmounted(pod, found):
    volumes = {volume["name"]: volume for volume in pod.get("volumes", ())}
    mounted = set()
    for container in pod["containers"]:
        ports = {port["name"] for port in container.get("ports", ())}
        mounted |= {mount["name"] for mount in container.get("volumeMounts", ())}
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            for how in ("httpGet", "tcpSocket"):
                port = container.get(probe, {}).get(how, {}).get("port")
                if port is not None and port not in ports:
                    yield f"{probe} asks port {port}"
    if mounted != volumes.keys():
        yield f"mounts {sorted(mounted)} of volumes {sorted(volumes)}"
    for volume in volumes.values():
        if "configMap" in volume and f"ConfigMap/{volume['configMap']['name']}" not in found:
            yield f"no ConfigMap {volume['configMap']['name']}"


def _unserved(objects):
    """Ports that a Service names and no Pod has, or that a Pod has and no NetworkPolicy opens."""
    policies = [each for each in objects if each["kind"] == "NetworkPolicy"]
    for each, metadata, pod in pods(objects):
        ports = {
            p["name"]: p["containerPort"] for c in pod["containers"] for p in c.get("ports", ())
        }
        labels = metadata["labels"].items()
        for service in objects:
            if service["kind"] == "Service" and service["spec"]["selector"].items() <= labels:
                wanted = {port["targetPort"] for port in service["spec"]["ports"]}
                if missing := wanted - ports.keys():
                    yield f"{name(service)}: no port {missing} on {name(each)}"
        mine = [
            p["spec"] for p in policies if p["spec"]["podSelector"]["matchLabels"].items() <= labels
        ]
        if mine:
            opened = {port["port"] for p in mine for r in p["ingress"] for port in r["ports"]}
            if closed := set(ports.values()) - opened:
                yield f"{name(each)}: the NetworkPolicy closes {closed}"


def unknown_flags(container, command):
    """Arguments of one of our programs that `command` (of click) does not take so."""
    options = {flag: each for each in command.params for flag in (*each.opts, *each.secondary_opts)}
    for argument in container["args"][1:]:
        flag, equals, _ = argument.partition("=")
        if flag not in options:
            yield flag
        elif options[flag].is_flag == bool(equals):
            yield argument


def misspelt(values, schema):
    """Messages of the chart's schema about these values."""
    validator = jsonschema.Draft7Validator(json.loads(schema))
    return [error.message for error in validator.iter_errors(values)]
