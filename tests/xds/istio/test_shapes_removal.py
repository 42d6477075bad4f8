"""The order in which a pool's wiring goes, and what refuses another."""

import json

import pytest

from tests.xds.istio.wired import (
    AT_SERVICE,
    GATEWAY,
    HAVE,
    OTHER_POOL,
    SERVICE,
    WAYPOINT,
    plan,
    plans,
    pool,
    route,
    to,
    version_for,
)
from xds.istio.objects import KINDS
from xds.istio.shapes.inventory import inventory
from xds.istio.shapes.removal import WrongOrder, refuse_wrong_order, unwirings
from xds.istio.shapes.wiring import Shape, ShapeError
from xds.manifests import read

NAME = "ns/llm-pool"


def printed(made):
    return [json.dumps(item) for step in made.steps for item in step.objects]


def installed(have, *, without=(), **more):
    """What the cluster has once every plan is applied, but for what is `without`, by name."""
    texts = {text for made in plans(*have, **more) for text in printed(made)}
    texts = sorted(t for t in texts if json.loads(t)["metadata"]["name"] not in without)
    return inventory(read("\n---\n".join([*have, *texts]), "cluster.yaml", KINDS))


def order(way):
    return [[f"{kind} {name}" for kind, _, name in step.objects] for step in way.steps]


ORDERS = {
    Shape.GATEWAY: [
        ["EnvoyFilter weir.inference-gateway.ns.llm-pool.routes"],
        ["EnvoyFilter weir.inference-gateway.ns.llm-pool", "EnvoyFilter weir.inference-gateway"],
    ],
    Shape.GATEWAY_OWN_CLUSTER: [
        ["EnvoyFilter weir.inference-gateway.ns.llm-pool.routes"],
        ["EnvoyFilter weir.inference-gateway.ns.llm-pool", "EnvoyFilter weir.inference-gateway"],
    ],
    Shape.WAYPOINT_INFERENCEPOOL: [
        ["HTTPRoute llm-gamma"],
        ["EnvoyFilter weir.waypoint.ns.llm-pool", "EnvoyFilter weir.waypoint.ns.llm.8000"],
    ],
    Shape.WAYPOINT_SECOND_SERVICE: [
        ["HTTPRoute llm"],
        [
            "EnvoyFilter weir.waypoint.ns.llm.8000.cluster",
            "EnvoyFilter weir.waypoint.ns.llm.8000",
        ],
        [],
    ],
    Shape.WAYPOINT_OWN_CLUSTER: [
        ["EnvoyFilter weir.waypoint.ns.llm.8000.route"],
        [
            "EnvoyFilter weir.waypoint.ns.llm.8000.cluster",
            "EnvoyFilter weir.waypoint.ns.llm.8000",
        ],
    ],
}


@pytest.mark.parametrize("shape", list(Shape))
def test_what_leads_somewhere_goes_before_where_it_leads(shape):
    (way,) = unwirings(installed(HAVE[shape], version=version_for(shape)), NAME)
    assert way.shape is shape
    assert order(way) == ORDERS[shape]


@pytest.mark.parametrize("shape", list(Shape))
def test_another_order_is_refused_until_the_first_step_is_done(shape):
    have, version = HAVE[shape], version_for(shape)
    (way,) = unwirings(installed(have, version=version), NAME)
    refuse_wrong_order(way, 1)
    with pytest.raises(WrongOrder, match="goes first, in step 1"):
        refuse_wrong_order(way, 2)
    kind, _, name = way.steps[0].objects[0]
    if kind == "HTTPRoute":
        gone = [document for document in have if f"name: {name}, namespace" not in document]
        made = [text for each in plans(*have, version=version) for text in printed(each)]
        after = inventory(read("\n---\n".join([*gone, *made]), "cluster.yaml", KINDS))
    else:
        after = installed(have, version=version, without=[name])
    (way,) = unwirings(after, NAME)
    assert order(way)[0] == []
    refuse_wrong_order(way, 2)


def test_the_second_service_that_we_printed_goes_last():
    have = HAVE[Shape.WAYPOINT_OWN_CLUSTER]
    found = installed(have, shape=Shape.WAYPOINT_SECOND_SERVICE)
    (way,) = unwirings(found, NAME)
    assert order(way)[0] == ["HTTPRoute llm-weir"]
    assert order(way)[2] == ["Service llm-weir"]
    with pytest.raises(WrongOrder):
        refuse_wrong_order(way, 3)


def test_what_another_pool_of_the_gateway_needs_stays():
    have = (pool(), OTHER_POOL, GATEWAY, route(to("llm-pool"), to("other")))
    texts = [text for name in (NAME, "ns/other") for text in printed(plan(*have, name=name))]
    found = inventory(read("\n---\n".join([*have, *dict.fromkeys(texts)]), "c.yaml", KINDS))
    (way,) = unwirings(found, NAME)
    assert "EnvoyFilter weir.inference-gateway" not in order(way)[1]
    assert any("weir.inference-gateway stays, for ns/other" in note for note in way.notes)


def test_filters_that_name_another_pool_too_stay_and_are_to_be_printed_anew():
    rules = (to("llm-pool"), to("other"))
    have = (pool(), OTHER_POOL, WAYPOINT, SERVICE, route(*rules, parents=[AT_SERVICE]))
    (way,) = unwirings(installed(have), NAME)
    assert order(way)[1] == ["EnvoyFilter weir.waypoint.ns.llm-pool"]
    assert any("stays, for ns/other; print it anew" in note for note in way.notes)


def test_an_operators_own_route_may_be_turned_instead_of_deleted():
    (way,) = unwirings(installed(HAVE[Shape.WAYPOINT_INFERENCEPOOL]), NAME)
    assert any("HTTPRoute ns/llm-gamma is yours" in note for note in way.notes)


@pytest.mark.parametrize("shape", list(Shape))
def test_a_pool_that_is_gone_leaves_a_way_out_of_what_we_printed(shape):
    have = HAVE[Shape.GATEWAY if shape.on_gateway else Shape.WAYPOINT_OWN_CLUSTER]
    made = plan(*have, shape=shape, version=version_for(shape))
    found = inventory(read("\n---\n".join([*have[1:], *printed(made)]), "c.yaml", KINDS))
    (way,) = unwirings(found, NAME)
    going = {name for step in way.steps for _, _, name in step.objects}
    own = {item["metadata"]["name"] for step in made.steps for item in step.objects}
    assert own <= going


def test_where_there_is_nothing_of_ours_nothing_is_guessed():
    with pytest.raises(ShapeError, match="has no EnvoyFilter of Weir's for it"):
        unwirings(inventory(read(pool(), "have.yaml", KINDS)), NAME)


def test_commands_name_what_they_delete():
    (way,) = unwirings(installed(HAVE[Shape.WAYPOINT_OWN_CLUSTER]), NAME)
    assert way.steps[0].commands == [
        "kubectl delete envoyfilter -n ns weir.waypoint.ns.llm.8000.route"
    ]
    assert "drain time" in way.steps[0].then


def test_the_pools_own_service_goes_last_and_not_while_another_route_needs_it():
    have = HAVE[Shape.WAYPOINT_OWN_CLUSTER]
    texts = printed(plan(*have, shape=Shape.WAYPOINT_INFERENCEPOOL))

    def way(*more):
        documents = "\n---\n".join([*have, *texts, *more])
        (only,) = unwirings(inventory(read(documents, "cluster.yaml", KINDS)), NAME)
        return only

    assert order(way())[-1] == ["Service llm-pool-ip-1c222a41"]
    shared = way(GATEWAY, route(to("llm-pool")))
    assert "Service" not in str(order(shared))
    assert any("HTTPRoute ns/llm-route leads to the pool too" in note for note in shared.notes)
