import asyncio

import pytest

from xds.latest import Latest
from xds.manifests import ManifestError
from xds.sources.files import Directory, FileSource, watch

POOL = """
apiVersion: inference.networking.k8s.io/v1
kind: InferencePool
metadata: {{name: {name}}}
spec:
  selector: {{matchLabels: {{app: {name}}}}}
  targetPorts: [{{number: {port}}}]
"""
POD = """
apiVersion: v1
kind: Pod
metadata: {{name: {name}-0, labels: {{app: {name}}}}}
status: {{podIP: {ip}}}
"""


@pytest.fixture
def path(tmp_path):
    (tmp_path / "one.yaml").write_text(POOL.format(name="one", port=8000))
    (tmp_path / "two.yaml").write_text(POOL.format(name="two", port=8000))
    (tmp_path / "pods.yml").write_text(POD.format(name="one", ip="10.0.0.1"))
    (tmp_path / "notes.txt").write_text("not a manifest")
    return tmp_path


def members(directory):
    return {name: [e.id for e in pool.endpoints] for name, pool in directory.pools.items()}


def test_a_directory_is_read_as_one(path):
    assert members(Directory(path)) == {"default/one": ["10.0.0.1:8000"], "default/two": []}


@pytest.mark.parametrize("text", ["a: [", "kind: InferencePool", POOL.format(name="x", port=0)])
def test_a_mistake_stops_the_start(path, text):
    (path / "three.yaml").write_text(text)
    with pytest.raises(ManifestError, match=r"^three\.yaml: "):
        Directory(path)


def test_a_directory_without_a_pool_stops_the_start(tmp_path):
    with pytest.raises(ManifestError, match="no InferencePool"):
        Directory(tmp_path)
    with pytest.raises(ManifestError, match="not a directory"):
        Directory(tmp_path / "missing")


def test_a_pool_that_asks_for_what_a_directory_cannot_have_is_told(path):
    said = "metadata: {{name: {name}, annotations: {{weir.dev/shape: auto}}}}"
    text = POOL.replace("metadata: {{name: {name}}}", said)
    (path / "one.yaml").write_text(text.format(name="one", port=8000))
    (fault,) = FileSource(path).faults
    assert (fault.where, fault.knob) == ("InferencePool default/one", "shape")
    assert "--manage-envoyfilters" in fault.message


@pytest.mark.parametrize("text", ["a: [", "", POOL.format(name="one", port=0)])
def test_a_later_mistake_leaves_that_file_as_it_was_and_the_others_go_on(path, text):
    directory = Directory(path)
    (path / "one.yaml").write_text(text)
    (path / "two.yaml").write_text(POOL.format(name="two", port=9000))
    (path / "more.yaml").write_text(POD.format(name="two", ip="10.0.0.2"))
    directory.reload()
    assert members(directory) == {
        "default/one": ["10.0.0.1:8000"],
        "default/two": ["10.0.0.2:9000"],
    }
    assert len(directory.problems) == 1
    assert directory.problems[0].startswith("one.yaml: ")


def test_of_two_files_that_contradict_each_other_the_one_that_was_there_stands(path):
    directory = Directory(path)
    (path / "another.yaml").write_text(POOL.format(name="one", port=9999))
    directory.reload()
    assert members(directory)["default/one"] == ["10.0.0.1:8000"]
    assert "already in" in directory.problems[0]


def test_a_mended_file_and_a_removed_one_count(path):
    directory = Directory(path)
    (path / "one.yaml").write_text("a: [")
    directory.reload()
    (path / "one.yaml").write_text(POOL.format(name="one", port=7000))
    (path / "two.yaml").unlink()
    directory.reload()
    assert members(directory) == {"default/one": ["10.0.0.1:7000"]}
    assert directory.problems == ()


async def test_a_directory_says_what_is_in_it_and_what_nothing_follows_from(path):
    (path / "model.yaml").write_text(
        """
apiVersion: inference.networking.x-k8s.io/v1alpha2
kind: InferenceModel
metadata: {name: chat}
spec: {modelName: chat, poolRef: {name: one}}
"""
    )
    source = FileSource(path)
    await source.complete()
    status = source.status(0.0)
    counts = {each["kind"]: (each["objects"], each["in_effect"]) for each in status["kinds"]}
    assert counts == {"InferenceModel": (1, False), "InferencePool": (2, True), "Pod": (1, True)}
    assert status["not_in_effect"] == ["model.yaml: InferenceModel default/chat"]
    assert (status["complete"], list(source.pools.value)) == (True, ["default/one", "default/two"])


async def test_changes_on_disk_are_published(path):
    directory = Directory(path)
    pools = Latest(directory.pools)
    reloads = []
    watching = asyncio.create_task(watch(directory, pools, reloads.append))
    try:
        async with asyncio.timeout(10):
            while not reloads:
                (path / "pods.yml").write_text(POD.format(name="one", ip="10.0.0.9"))
                await asyncio.sleep(0.2)
            while pools.value["default/one"].endpoints[0].address != "10.0.0.9":
                await asyncio.sleep(0.05)
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
