"""The manifests as Python values: read from files, rendered by Helm or kustomize, made comparable.

The tools are looked for in $WEIR_HELM and $WEIR_KUSTOMIZE, beside this Python, and on the PATH;
`kubectl kustomize` will do for kustomize. Where there is none, `Missing` says what to do about it.
"""

import copy
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
CHART = ROOT / "manifests/helm/weir"
KUSTOMIZE = ROOT / "manifests/kustomize"
OVERLAYS = ("standalone", "gateway", "waypoint")
KUBERNETES = "1.37.0"  # what Helm is told that it talks to
# Helm's own labels and what it writes where kustomize puts a hash into a name.
HELMS = ("helm.sh/chart", "app.kubernetes.io/instance", "app.kubernetes.io/managed-by")
HELMS += ("app.kubernetes.io/version", "checksum/grants", "checksum/bootstrap")
HASHED = re.compile(r"-[2456789bcdfghkmt]{10}$")


class Missing(Exception):
    """A tool is not installed; the message says which, and how to get it."""


def documents(text):
    """The objects of a YAML stream; two of one name are a mistake."""
    objects = [each for each in yaml.safe_load_all(text) if each]
    names = [name(each) for each in objects]
    assert len(names) == len(set(names)), sorted(names)
    return objects


def name(each):
    metadata = each["metadata"]
    return f"{each['kind']} {metadata.get('namespace', '')}/{metadata['name']}"


def index(objects):
    return {f"{each['kind']}/{each['metadata']['name']}": each for each in objects}


def tool(program):
    chosen = os.environ.get(f"WEIR_{program.upper()}")
    beside = Path(sys.executable).with_name(program)
    found = chosen or (str(beside) if beside.exists() else shutil.which(program))
    if found is None:
        raise Missing(f"{program} is not installed; `make {program}` builds it with Go")
    return found


def helm(*arguments, chart=CHART):
    """What helm prints; a failure is a `subprocess.CalledProcessError` with its stderr."""
    command, *rest = arguments
    version = [f"--kube-version={KUBERNETES}"]
    words = [tool("helm"), command, *(["weir"] if command == "template" else [])]
    words += [str(chart), "--namespace=weir", *version, *rest]
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout


def template(*arguments, chart=CHART):
    """The objects of the chart; of `helm test` too."""
    return documents(helm("template", *arguments, chart=chart))


def kustomize(directory):
    try:
        command = [tool("kustomize"), "build"]
    except Missing:
        if (kubectl := shutil.which("kubectl")) is None:
            raise
        command = [kubectl, "kustomize"]
    words = [*command, str(directory)]
    return documents(subprocess.run(words, check=True, capture_output=True, text=True).stdout)


def comparable(each):
    """The object without what Helm and kustomize each add, and with its unordered lists sorted."""
    each = copy.deepcopy(each)
    _clean(each)
    if each["kind"] == "ConfigMap":
        each["data"] = {key: yaml.safe_load(text) for key, text in each["data"].items()}
        each["metadata"]["name"] = HASHED.sub("", each["metadata"]["name"])
    if each["kind"] == "Deployment":
        pod = each["spec"]["template"]["spec"]
        for volume in pod["volumes"]:
            if "configMap" in volume:
                volume["configMap"]["name"] = HASHED.sub("", volume["configMap"]["name"])
        pod["volumes"].sort(key=lambda volume: volume["name"])
        for container in pod["containers"]:
            container["volumeMounts"].sort(key=lambda mount: mount["mountPath"])
            if container["name"] == "weir":
                command, *flags = container["args"]
                container["args"] = [command, *sorted(flags)]
    return each


def _clean(value):
    if isinstance(value, list):
        for each in value:
            _clean(each)
    elif isinstance(value, dict):
        for key in HELMS:
            value.pop(key, None)
        for each in value.values():
            _clean(each)
        for key in [key for key in ("annotations", "labels") if value.get(key) in ({}, None)]:
            value.pop(key, None)
