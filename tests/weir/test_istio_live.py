"""`weir istio` looking at a cluster says what it says of the same objects in files."""

import asyncio
import json
import sys
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import yaml

from weir.bench.apiserver import ApiServer, kubeconfig
from weir.istio.source import LIVE

ISTIOD = Path(__file__).parents[2] / "integration" / "istiod"
PLURALS = {kind.name: kind for kind in reversed(LIVE)}


def objects():
    documents = list(yaml.safe_load_all((ISTIOD / "kubernetes.yaml").read_text()))
    return [each for each in documents if each["kind"] in PLURALS]


@asynccontextmanager
async def cluster(tmp_path, documents, *, without=()):
    collections = {f"{kind.plural}.{kind.group}" for kind in LIVE} - set(without)
    api = ApiServer(collections)
    for document in documents:
        kind = PLURALS[document["kind"]]
        # A list's items do not say what they are.
        item = {key: value for key, value in document.items() if key not in ("apiVersion", "kind")}
        api.store.put(f"{kind.plural}.{kind.group}", item)
    await api.start()
    try:
        yield api, kubeconfig(tmp_path / "kubeconfig", api.url)
    finally:
        await api.stop()


async def weir(*arguments):
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "weir", "istio", *map(str, arguments)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    return process.returncode, out.decode(), err.decode()


async def test_the_manifests_are_those_of_the_same_objects_in_files(tmp_path):
    have = tmp_path / "have"
    have.mkdir()
    (have / "objects.yaml").write_text(yaml.safe_dump_all(objects()))
    options = ("ns/llm-pool", "--istio-version", "1.32", "--json")
    async with cluster(tmp_path, objects()) as (_, config):
        status, said, err = await weir(
            "manifests", *options, "--kubernetes", "--kubeconfig", config
        )
        assert status == 0, err
    _, from_files, _ = await weir("manifests", *options, "--config", have)
    assert json.loads(said) == json.loads(from_files)
    assert json.loads(said)


async def test_kinds_that_are_not_installed_are_none(tmp_path):
    gone = {"virtualservices.networking.istio.io", "inferencepools.inference.networking.x-k8s.io"}
    async with cluster(tmp_path, objects(), without=gone) as (_, config):
        status, _, err = await weir(
            *("manifests", "ns/llm-pool", "--istio-version", "1.32"),
            *("--kubernetes", "--kubeconfig", config),
        )
        assert status == 0, err


async def test_a_bad_annotation_is_noted_in_words_and_pods_that_are_not_looked_at_are_not_missed(
    tmp_path,
):
    documents = objects()
    (pool,) = [each for each in documents if each["kind"] == "InferencePool"]
    pool["metadata"]["annotations"] = {"weir.dev/mode": "idle"}
    async with cluster(tmp_path, documents) as (_, config):
        _, _, err = await weir(
            *("manifests", "ns/llm-pool", "--istio-version", "1.32"),
            *("--kubernetes", "--kubeconfig", config),
        )
    said = [line for line in err.splitlines() if "llm-pool" in line]
    assert len(said) == 1, said
    assert said[0].startswith("note: InferencePool ns/llm-pool: weir.dev/mode: ")
    assert "not 'idle'" in said[0]


async def test_what_may_not_be_listed_is_said(tmp_path):
    async with cluster(tmp_path, objects()) as (api, config):
        api.forbidden.add("envoyfilters.networking.istio.io")
        status, _, err = await weir(
            *("manifests", "ns/llm-pool", "--istio-version", "1.32"),
            *("--kubernetes", "--kubeconfig", config),
        )
        assert status == 1
        assert "list on 'envoyfilters' of API group 'networking.istio.io'" in err


async def test_an_api_server_that_is_away_is_said(tmp_path):
    config = kubeconfig(tmp_path / "kubeconfig", "http://127.0.0.1:1")
    status, _, err = await weir(
        *("manifests", "ns/llm-pool", "--kubernetes", "--kubeconfig", config)
    )
    assert status == 1
    assert "the API server does not answer" in err


@pytest.mark.parametrize(
    "options",
    [(), ("--context", "it"), ("--kubernetes", "--config", ".")],
    ids=["nowhere", "a context of nothing", "both"],
)
async def test_one_place_has_to_be_named(options):
    status, _, _ = await weir("manifests", "ns/llm-pool", *options)
    assert status == 2
