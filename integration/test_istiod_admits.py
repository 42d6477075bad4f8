"""What an operator applies is taken by a real API server, by Istio's CRDs and by istiod's webhook.

Not looked at is what other projects' CRDs are for: cert-manager's, Prometheus'.
"""

import pytest
import pytest_asyncio
import yaml

from integration.cluster import MISSING, cluster
from integration.test_install import SCENARIOS, of_overlay, rendered
from tests.manifests import objects
from tests.manifests.objects import OVERLAYS, ROOT, name

pytestmark = [
    pytest.mark.skipif(bool(MISSING), reason=MISSING),
    pytest.mark.asyncio(loop_scope="module"),
]
ELSEWHERE = ("cert-manager.io/", "monitoring.coreos.com/")
GENERAL = "EnvoyFilter exposes internal implementation details"
GUIDE = sorted((ROOT / "docs/examples/istio").glob("*.yaml"))
NAMESPACES = ("weir", "llm", "default", "a", "b")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(tmp_path_factory):
    spaces = [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": each}} for each in NAMESPACES
    ]
    async with cluster(tmp_path_factory.mktemp("cluster"), *spaces) as made:
        yield made


async def taken(made, documents):
    looked_at = [each for each in documents if not each["apiVersion"].startswith(ELSEWHERE)]
    for each in looked_at:
        await made.kubectl.try_out(each)
        if "istio.io" in each["apiVersion"]:
            said = await made.istiod.objections(each)
            assert [item for item in said if not item.startswith(GENERAL)] == [], name(each)
    assert looked_at or documents


@pytest.mark.parametrize("values", SCENARIOS.values(), ids=SCENARIOS)
async def test_the_charts_objects_are_taken(running, tmp_path, values):
    file = tmp_path / "values.yaml"
    file.write_text(yaml.safe_dump(values))
    await taken(running, rendered(objects.template, f"--values={file}"))


@pytest.mark.parametrize("overlay", OVERLAYS)
async def test_an_overlays_objects_are_taken(running, overlay):
    await taken(running, of_overlay(overlay))


@pytest.mark.parametrize("path", GUIDE, ids=[each.stem for each in GUIDE])
async def test_the_guides_objects_are_taken(running, path):
    await taken(running, [each for each in yaml.safe_load_all(path.read_text()) if each])
