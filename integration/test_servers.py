"""Where a server cannot be built, tests that need it say why they skip."""

import pytest

from integration import servers

PROGRAMS = ("etcd", "kube-apiserver")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(tmp_path))
    return tmp_path


def test_without_go_nothing_is_built_and_that_is_why_tests_skip(folder, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert servers.main("apiserver", folder) == 1
    assert servers.assets("apiserver") is None
    assert servers.why_not("apiserver").endswith(": there is no Go to build it with")


def test_a_build_that_fails_is_why_tests_skip_until_one_does_not(folder, monkeypatch):
    go = folder / "go"
    go.write_text("#!/bin/sh\necho it is broken >&2\nexit 1\n")
    go.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))
    assert servers.main("apiserver", folder) == 1
    assert servers.why_not("apiserver").endswith(": `go mod` failed: it is broken")


def test_where_nobody_tried_it_is_said_how(monkeypatch):
    monkeypatch.delenv("ISTIOD_ASSETS", raising=False)
    assert servers.assets("istiod") is None
    assert servers.why_not("istiod").endswith("; `make istiod` builds it")


def test_what_is_there_is_found_and_built_again_only_at_another_version(folder, monkeypatch):
    for name in PROGRAMS:
        (folder / name).touch()
    assert servers.assets("apiserver") == folder
    monkeypatch.setenv("PATH", "")
    assert servers.main("apiserver", folder) == 1  # of which version, nobody knows
    versions = [f"{each.module} {each.version}\n" for each in servers.PROGRAMS["apiserver"]]
    (folder / "apiserver.built").write_text("".join(versions))
    assert servers.main("apiserver", folder) == 0
    (folder / "apiserver.built").write_text("".join(versions).replace("v1.35", "v1.34"))
    assert servers.main("apiserver", folder) == 1


def test_what_a_module_has_staged_is_required_as_it_is_published():
    module = {
        "Go": "1.25.0",
        "Replace": [
            {"Old": {"Path": "k8s.io/api"}, "New": {"Path": "./staging/src/k8s.io/api"}},
            {"Old": {"Path": "theirs"}, "New": {"Path": "example.com/fork", "Version": "v1"}},
        ],
    }
    (_, program) = servers.PROGRAMS["apiserver"]
    assert servers.requiring(program, module).splitlines() == [
        "module servers",
        "go 1.25.0",
        "require k8s.io/kubernetes v1.35.4",
        "replace k8s.io/api => k8s.io/api v0.35.4",
    ]
