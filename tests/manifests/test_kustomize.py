"""The kustomize tree, as far as its files can be judged without kustomize."""

import re
from collections import Counter

import pytest
import yaml

from tests.manifests import checks
from tests.manifests.objects import KUSTOMIZE, ROOT, documents
from weir import picker, serve
from xds.standalone import bootstrap

COMMANDS = {"weir-xds": serve.command, "weir-picker": picker.command}
ROW = re.compile(
    r"^\| ([a-z, ]+) \| ([a-z, /]+) \| ([a-z0-9.-]+) \| (always|`.+?`) \|", re.MULTILINE
)


def kustomizations():
    return sorted(KUSTOMIZE.rglob("kustomization.yaml"))


def files(*, of="*.yaml"):
    """Files of whole objects."""
    others = {"kustomization.yaml", "envoy.yaml", "grants.yaml"}
    return [file for file in sorted(KUSTOMIZE.rglob(of)) if file.name not in others]


def objects(*names):
    return [each for name in names for each in documents((KUSTOMIZE / name).read_text())]


@pytest.mark.parametrize("file", kustomizations(), ids=lambda file: file.parent.name)
def test_every_file_of_a_kustomization_is_there_and_used(file):
    content = yaml.safe_load(file.read_text("utf-8"))
    named = [*content.get("resources", ()), *content.get("components", ())]
    named += [each for made in content.get("configMapGenerator", ()) for each in made["files"]]
    assert [name for name in named if not (file.parent / name).exists()] == []
    beside = {each.name for each in file.parent.iterdir()} - {"kustomization.yaml"}
    assert beside - set(named) == set()


@pytest.mark.parametrize("file", files(), ids=lambda file: f"{file.parent.name}-{file.stem}")
def test_every_object_is_what_its_schema_wants(file):
    assert [
        problem for each in documents(file.read_text()) for problem in checks.invalid(each)
    ] == []


def test_every_pod_runs_restricted_with_a_read_only_root_and_limits():
    found = [pod for file in files() for pod in checks.pods(documents(file.read_text()))]
    assert len(found) == 3
    for each, _, pod in found:
        assert (each["metadata"]["name"], checks.unrestricted(pod)) == (
            each["metadata"]["name"],
            [],
        )
        assert all("memory" in container["resources"]["limits"] for container in pod["containers"])


def test_only_the_control_plane_has_a_token_for_the_api_server():
    mounts = {}
    for file in files():
        for each in documents(file.read_text()):
            if each["kind"] == "ServiceAccount":
                assert each["automountServiceAccountToken"] is False
        for each, _, pod in checks.pods(documents(file.read_text())):
            mounts[each["metadata"]["name"]] = pod["automountServiceAccountToken"]
    assert mounts == {"weir-xds": True, "weir-picker": False, "weir-envoy": False}


STATUS = "`controller.writeStatus=true`"
RIGHTS = {
    "always": "base/rbac.yaml",
    "`istio.enabled=true`": "components/istio/rbac.yaml",
    "`security.clients=tokens`": "components/tokens/rbac.yaml",
    "`controller.manageEnvoyFilters=true`": "components/envoyfilters/rbac.yaml",
}


def table():
    """docs/install.md's rights: when → how often (group, resource, verb) is told."""
    rows = {}
    for verbs, resources, group, when in ROW.findall((ROOT / "docs/install.md").read_text()):
        for resource in resources.split(", "):
            for verb in verbs.split(", "):
                right = ("" if group == "core" else group, resource, verb)
                rows.setdefault(when, Counter())[right] += 1
    return rows


def counted(found):
    return Counter((group, resource, verb) for group, resource, verb, _ in checks.rights(found))


def without_status():
    """The base's rights, less those that the component no-status takes away."""
    content = yaml.safe_load((KUSTOMIZE / "components/no-status/kustomization.yaml").read_text())
    found = objects(RIGHTS["always"])
    for patch in content["patches"]:
        if patch["target"]["kind"] == "ClusterRole":
            for step in yaml.safe_load(patch["patch"]):
                assert (step["op"], step["path"].rpartition("/")[0]) == ("remove", "/rules")
                del found[0]["rules"][int(step["path"].rpartition("/")[2])]
    return found


def test_the_documented_rights_are_those_that_the_roles_give():
    given = {when: counted(objects(file)) for when, file in RIGHTS.items()}
    whole, given["always"] = given["always"], counted(without_status())
    given[STATUS] = whole - given["always"]
    assert table() == given


def test_the_control_plane_may_read_what_it_watches_and_nothing_else():
    kinds = pytest.importorskip("xds.sources.kinds", reason="no Kubernetes source in this tree")
    watched = {(kind.group, kind.plural) for kind in kinds.ALWAYS}
    for when, wanted in (
        ("always", watched),
        ("`istio.enabled=true`", {(kind.group, kind.plural) for kind in kinds.MESH}),
        ("`controller.manageEnvoyFilters=true`", {(k.group, k.plural) for k in kinds.ISTIO}),
    ):
        rights = checks.rights(objects(RIGHTS[when]))
        assert {(group, each) for group, each, verb, _ in rights if verb == "watch"} == wanted


def test_no_account_of_ours_has_a_right_over_secrets_or_over_rights():
    assert list(checks.overpowered(objects(*RIGHTS.values()))) == []


def arguments():
    """(Deployment, argument) of the base, and of every patch that adds one."""
    for each, _, pod in checks.pods(objects("base/xds.yaml", "base/picker.yaml")):
        for argument in pod["containers"][0]["args"][1:]:
            yield each["metadata"]["name"], argument
    for file in kustomizations():
        for patch in yaml.safe_load(file.read_text("utf-8")).get("patches", ()):
            for step in yaml.safe_load(patch["patch"]):
                if step["path"].endswith("/args/-"):
                    yield patch["target"]["name"], step["value"]


def test_the_programs_take_the_flags_that_they_are_started_with():
    for deployment, argument in arguments():
        container = {"args": ["", argument]}
        unknown = list(checks.unknown_flags(container, COMMANDS[deployment]))
        assert unknown == [], (deployment, argument)


def test_the_bootstrap_of_the_standalone_envoy_is_what_weir_prints():
    content = yaml.safe_load((KUSTOMIZE / "overlays/standalone/envoy.yaml").read_text())
    assert content == yaml.safe_load(bootstrap("weir-xds.weir.svc:15010", 19000, "weir-envoy"))
