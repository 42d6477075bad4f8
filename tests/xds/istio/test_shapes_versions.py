"""What each Istio version allows, and what stands in the way."""

import pytest

from tests.xds.istio.test_shapes_choice import FILTER, FLAG, ISTIOD
from tests.xds.istio.wired import GATEWAY, WAYPOINT, XDS
from xds.istio.objects import KINDS
from xds.istio.shapes.inventory import inventory, parse_version
from xds.istio.shapes.precheck import findings, matrix
from xds.istio.shapes.versions import TIERS, VERSIONS, Verdict
from xds.istio.shapes.wiring import Shape, Version
from xds.manifests import read
from xds.pool import Tier

XDS_SERVICE = """
apiVersion: v1
kind: Service
metadata: {name: weir-xds, namespace: weir}
spec: {ports: [{name: %s, port: %s}]}
"""
YES, PARTLY, NO = Verdict.YES, Verdict.PARTLY, Verdict.NO

# shape → what a pick is, from 1.27 to 1.32
PICKS = {
    Shape.GATEWAY: [NO, NO, NO, NO, NO, YES],
    Shape.GATEWAY_OWN_CLUSTER: [NO, PARTLY, PARTLY, YES, YES, YES],
    Shape.WAYPOINT_INFERENCEPOOL: [NO, PARTLY, PARTLY, YES, YES, YES],
    Shape.WAYPOINT_SECOND_SERVICE: [PARTLY, PARTLY, PARTLY, YES, YES, YES],
    Shape.WAYPOINT_OWN_CLUSTER: [PARTLY, PARTLY, PARTLY, YES, YES, YES],
}


def have(*documents):
    return inventory(read("\n---\n".join(documents), "have.yaml", KINDS))


def found(*documents, version="1.32"):
    return findings(Version(*map(int, version.split("."))), have(*documents), XDS)


@pytest.mark.parametrize(("shape", "verdicts"), PICKS.items())
def test_picks_by_shape_and_version(shape, verdicts):
    assert [matrix(each)[shape][Tier.PICK].verdict for each in VERSIONS] == verdicts


def test_only_what_was_run_says_that_it_was():
    for version in (*VERSIONS, Version(1, 26), Version(1, 33)):
        cells = [matrix(version)[shape][tier] for shape in Shape for tier in TIERS]
        assert {each.evidence for each in cells} == {"run" if version == (1, 32) else "read"}
        assert all(each.why for each in cells if each.verdict is not YES)


def test_all_is_well_where_nothing_is_found():
    service = XDS_SERVICE % ("grpc-xds", 15010)
    assert found(ISTIOD % ("1.32.0", FLAG), service) == []
    ambient = FLAG + ", {name: PILOT_ENABLE_AMBIENT, value: 'true'}"
    assert found(ISTIOD % ("1.32.0", ambient), service, WAYPOINT) == []


@pytest.mark.parametrize(
    ("documents", "version", "what", "stops"),
    [
        ((ISTIOD % ("1.32.0", ""),), "1.32", "ENABLE_GATEWAY_API_INFERENCE_EXTENSION is not", True),
        (
            (ISTIOD % ("1.32.0", FLAG + ", {name: PILOT_ENABLE_GATEWAY_API, value: 'false'}"),),
            "1.32",
            "PILOT_ENABLE_GATEWAY_API is false",
            True,
        ),
        ((ISTIOD % ("1.32.0", FLAG), WAYPOINT), "1.32", "PILOT_ENABLE_AMBIENT is not", True),
        ((), "1.32", "not in the configuration, so its flags are not known", False),
        ((XDS_SERVICE % ("xds", 15010),), "1.32", "port 15010 is named `xds`", True),
        ((XDS_SERVICE % ("grpc-xds", 15011),), "1.32", "has no port 15010", True),
        ((), "1.32", "not in the configuration", False),
        ((), "1.26", "older than what Weir's policies need", True),
        ((), "1.29", "older than 1.32, which is what was run", False),
        ((), "1.33", "newer than 1.32", False),
        ((GATEWAY, FILTER), "1.32", "applies to HTTP_ROUTE of Gateway ns/inference-gateway", False),
        ((ISTIOD % ("1.30.1", FLAG),), "1.32", "is Istio 1.30, beside 1.32", False),
    ],
)
def test_what_stands_in_the_way_is_found(documents, version, what, stops):
    fitting = [each for each in found(*documents, version=version) if what in each.what]
    assert fitting
    assert fitting[0].stops is stops
    assert fitting[0].do


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("1.32", (1, 32)),
        ("v1.30.2", (1, 30)),
        ("1.32-alpha.0", (1, 32)),
        ("latest", None),
        ("", None),
    ],
)
def test_versions_are_read_as_they_are_written(text, version):
    assert parse_version(text) == version


def test_istiods_version_is_its_images_else_its_labels():
    assert set(have(ISTIOD % ("1.31.4-distroless", "")).versions().values()) == {(1, 31)}
    labelled = (ISTIOD % ("sha", "")).replace(
        "app: istiod", "app: istiod, app.kubernetes.io/version: 1.28.3"
    )
    assert set(have(labelled).versions().values()) == {(1, 28)}
    other = (ISTIOD % ("1.32.0", "")).replace("app: istiod", "app: mine")
    assert have(other).versions() == {}


def test_istios_own_gateway_kind_is_passed_over():
    text = "apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {name: g}\nspec: {}\n"
    assert read(text, "have.yaml", KINDS) == []
