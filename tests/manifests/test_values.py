"""The chart's values: what the schema refuses, and that the README tells of each."""

import copy
import json
import re
import tomllib

import pytest
import yaml

from tests.manifests.checks import misspelt
from tests.manifests.objects import CHART, KUSTOMIZE, ROOT

SCHEMA = (CHART / "values.schema.json").read_text("utf-8")
VALUES = yaml.safe_load((CHART / "values.yaml").read_text("utf-8"))
WHOLE = ("security.certManager.issuerRef",)  # one row in the README


def nodes(values, schema, path=""):
    """(path, value, schema) of every value; of sections, too."""
    for key, value in values.items():
        node = schema["properties"][key]
        here = f"{path}.{key}".lstrip(".")
        yield here, value, node
        if "properties" in node:
            yield from nodes(value, node, here)


TREE = list(nodes(VALUES, json.loads(SCHEMA)))
SECTIONS = [""] + [path for path, _, node in TREE if "properties" in node]


def with_value(path, value):
    """The defaults with one value changed, by its path."""
    values = copy.deepcopy(VALUES)
    at = values
    *parents, last = path.split(".")
    for parent in parents:
        at = at[parent]
    at[last] = value
    return values


def test_the_default_values_are_what_the_schema_wants():
    assert misspelt(VALUES, SCHEMA) == []


@pytest.mark.parametrize("file", sorted((CHART / "ci").glob("*.yaml")), ids=lambda file: file.stem)
def test_the_values_of_whole_installations_are_too(file):
    assert misspelt(yaml.safe_load(file.read_text("utf-8")), SCHEMA) == []


@pytest.mark.parametrize("section", SECTIONS)
def test_a_misspelt_value_is_refused_in_every_section(section):
    (message,) = misspelt(with_value(f"{section}.replcas".lstrip("."), 3), SCHEMA)
    assert "'replcas' was unexpected" in message


def test_the_schema_knows_every_value_and_no_other():
    def known(schema, path=""):
        for key, node in schema.get("properties", {}).items():
            here = f"{path}.{key}".lstrip(".")
            yield here
            yield from known(node, here)

    assert set(known(json.loads(SCHEMA))) - {"global"} == {path for path, _, _ in TREE}


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("security.clients", "mtls"),
        ("security.grants", [{"namespace": "edge"}]),  # grants nothing
        ("security.grants", [{"pools": ["*"], "proxytype": "router"}]),
        ("security.certManager.duration", "1 day"),
        ("image.digest", "latest"),
        ("namespaces", ["Team_A"]),
        ("namespaces", "team"),
        ("istio.proxies", ["sidecar"]),
        ("picker.replicas", 0),
        ("picker.pool", "llama"),  # without its namespace
        ("picker.captured", "false"),
        ("picker.tls", {"enabled": True, "allow": []}),  # nobody may ask
        ("picker.tls.allow", ["waypoint"]),  # without its namespace
        ("picker.tls.allow", ["spiffe://cluster.local/ns/team/sa/waypoint"]),
        ("meshScraping.trustDomain", "spiffe://cluster.local"),
        ("xds.podLabels", {"a": 1}),
        ("networkPolicy.metricsFrom", [{"from": {}}]),
        ("authorizationPolicy", {"enabled": True, "principals": []}),
        ("authorizationPolicy.principals", ["spiffe://cluster.local/ns/a/sa/b"]),
        ("podDisruptionBudget.maxUnavailable", 0),
    ],
)
def test_a_value_that_cannot_be_meant_is_refused(path, value):
    assert misspelt(with_value(path, value), SCHEMA)


def test_the_readme_has_every_value_with_its_default():
    readme = (CHART / "README.md").read_text("utf-8")
    rows = re.findall(r"^\| `([\w.]+)` \| `(.*?)` \| ", readme, re.MULTILINE)
    told = {path: yaml.safe_load(default) for path, default in rows}
    leaves = {
        path: value
        for path, value, node in TREE
        if path in WHOLE or ("properties" not in node and not path.startswith(WHOLE))
    }
    assert told == leaves
    assert [path for path, _ in rows] == list(leaves)


def test_the_chart_and_the_kustomization_are_of_the_version_of_the_program():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert (chart["version"], chart["appVersion"]) == (version, version)
    for file in ("xds.yaml", "picker.yaml"):
        assert f"image: weir:{version}\n" in (KUSTOMIZE / "base" / file).read_text()
