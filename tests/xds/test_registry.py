"""Objects of an API server: what one that is bad costs, what stands, and what is told."""

import copy
import sys

import msgspec
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tests.xds.test_manifests import POD, POOL, annotated, changed
from xds import registry
from xds.manifests import Manifest, ManifestError, Metadata, read
from xds.pool import Mode, Policy, Tier
from xds.problems import Reason
from xds.registry import Standing
from xds.tuning import On


def manifests(*texts):
    return [each for number, text in enumerate(texts) for each in read(text, f"{number}")]


def told(problems):
    return [(each.where, each.reason, each.knob) for each in problems]


def named(text, name):
    return changed(text, ["metadata", "name"], name)


def at(pod, address):
    return changed(pod, ["status", "podIP"], address)


def test_objects_without_fault_are_what_they_are_from_files():
    pool, pod = annotated(POOL, policy="affinity", engine="sglang"), annotated(POD, capacity="2")
    found, problems = Standing().pools(manifests(pool, pod))
    assert found == registry.pools(manifests(pool, pod))
    assert problems == []


def test_of_a_bad_annotation_the_last_good_value_stands_and_the_rest_has_effect():
    standing = Standing()
    standing.pools(manifests(annotated(POOL, policy="affinity", smoothing="0.5"), POD))
    bad = annotated(POOL, policy="fastest", smoothing="0.9", mode="freeze", colour="red")
    found, problems = standing.pools(manifests(bad, POD))
    policy = found["prod/llama"].policy
    assert policy == Policy(tier=Tier.AFFINITY, smoothing=0.9, mode=Mode.FREEZE)
    assert len(found["prod/llama"].endpoints) == 1
    where = "InferencePool prod/llama"
    assert told(problems) == [
        (where, Reason.UNKNOWN, "colour"),
        (where, Reason.BAD_VALUE, "policy"),
    ]
    assert problems[1].message == (
        "weir.dev/policy: one of pick, affinity, weights, round-robin, least-request, "
        "not 'fastest'; the last good value stands, or the default"
    )
    found, problems = standing.pools(manifests(POOL, POD))
    assert found["prod/llama"].policy == Policy(), "removed, hence the default"
    assert problems == []


def test_where_there_was_no_good_value_the_default_stands():
    found, problems = Standing().pools(
        manifests(annotated(POOL, mode="off"), annotated(POD, capacity="x", priority="1"))
    )
    assert found["prod/llama"].policy == Policy()
    (endpoint,) = found["prod/llama"].endpoints
    assert (endpoint.speed, endpoint.priority) == (1.0, 1)
    assert [each.where for each in problems] == ["InferencePool prod/llama", "Pod prod/llama-0"]


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (["spec", "targetPorts"], [], "spec.targetPorts: at least one port"),
        (["spec", "targetPorts"], [{"number": 0}], "1 to 65535, not 0"),
        (["spec", "selector", "matchLabels"], {}, "spec.selector.matchLabels: at least one label"),
    ],
)
def test_of_a_pool_that_cannot_be_one_the_last_good_form_stands(path, value, words):
    standing, bad, other = Standing(), changed(POOL, path, value), named(POOL, "other")
    found, _ = standing.pools(manifests(bad, other, POD))
    assert found.keys() == {"prod/other"}, "there was none, and another pool is as it was"
    good, _ = standing.pools(manifests(POOL, other, POD))
    found, problems = standing.pools(manifests(bad, other, POD))
    assert found == good
    assert told(problems)[0] == ("InferencePool prod/llama", Reason.INVALID, "")
    assert words in problems[0].message
    assert standing.pools(manifests(other, POD))[0].keys() == {"prod/other"}, "and goes with it"
    assert standing.pools(manifests(bad, other, POD))[0].keys() == {"prod/other"}
    with pytest.raises(ManifestError, match="prod/llama"):
        registry.pools(manifests(bad))


class Identified(Metadata, frozen=True):
    uid: str = ""


def identified(manifest, uid):
    metadata = Identified(
        manifest.object.metadata.name,
        manifest.object.metadata.namespace,
        annotations=manifest.object.metadata.annotations,
        uid=uid,
    )
    return Manifest("api", msgspec.structs.replace(manifest.object, metadata=metadata))


def test_what_was_good_was_that_objects_and_not_that_of_its_successor():
    (good,) = manifests(annotated(POOL, mode="freeze"))
    (bad,) = manifests(changed(annotated(POOL, mode="ice"), ["spec", "targetPorts"], []))
    standing = Standing()
    standing.pools([identified(good, "u1")])
    assert standing.pools([identified(bad, "u1")])[0]["prod/llama"].policy.mode is Mode.FREEZE
    found, problems = standing.pools([identified(bad, "u2")])
    assert found == {}
    assert {each.uid for each in problems} == {"u2"}
    (mended,) = manifests(annotated(POOL, mode="ice"))
    found, _ = standing.pools([identified(mended, "u2")])
    assert found["prod/llama"].policy.mode is Mode.ACTIVE


def test_annotations_of_a_pool_that_cannot_be_one_have_effect_on_its_last_form():
    standing = Standing()
    standing.pools(manifests(POOL, POD))
    bad = annotated(changed(POOL, ["spec", "targetPorts"], []), mode="freeze")
    found, _ = standing.pools(manifests(bad, POD))
    assert found["prod/llama"].policy.mode is Mode.FREEZE


def test_the_first_of_two_objects_of_one_name_stands():
    twin = annotated(POOL, mode="freeze")
    found, problems = Standing().pools(manifests(POOL, twin, POD))
    assert found["prod/llama"].policy.mode is Mode.ACTIVE
    assert told(problems) == [("InferencePool prod/llama", Reason.DUPLICATE, "")]


def test_a_selector_that_nothing_has_is_an_empty_pool_that_says_so():
    pool = changed(POOL, ["spec", "selector", "matchLabels"], {"app": "lama", "tier": "x"})
    found, problems = Standing().pools(manifests(pool, POD))
    assert found["prod/llama"].endpoints == ()
    assert told(problems) == [("InferencePool prod/llama", Reason.NO_PODS, "")]
    assert "app=lama,tier=x" in problems[0].message


@pytest.mark.parametrize(
    ("path", "value"), [(["status", "podIP"], ""), (["status", "phase"], "Succeeded")]
)
def test_a_pod_that_has_no_address_yet_or_is_done_is_no_member_and_no_fault(path, value):
    found, problems = Standing().pools(manifests(POOL, changed(POD, path, value)))
    assert found["prod/llama"].endpoints == ()
    assert problems == []


@pytest.mark.parametrize("address", ["llama.prod.svc", "10.0.0.300", "10.0.0.7:8000", "[::1]"])
def test_an_address_that_is_none_is_kept_from_proxies_which_would_refuse_the_whole_pool(address):
    found, problems = Standing().pools(manifests(POOL, POD, at(named(POD, "odd"), address)))
    assert [each.pod for each in found["prod/llama"].endpoints] == ["prod/llama-0"]
    assert told(problems) == [("Pod prod/odd", Reason.INVALID_ADDRESS, "")]
    with pytest.raises(ManifestError, match=r"0: Pod prod/llama-0: status\.podIP: an IP"):
        registry.pools(manifests(at(POD, address), POOL))


def test_an_endpoint_of_two_pools_is_served_in_both_and_told_once():
    pods = [POD, at(named(POD, "llama-1"), "10.0.0.8")]
    found, problems = Standing().pools(manifests(named(POOL, "b"), named(POOL, "a"), *pods))
    assert found["prod/a"].endpoints == found["prod/b"].endpoints
    assert told(problems) == [("InferencePool prod/b", Reason.SHARED_ENDPOINTS, "")]
    assert "prod/a" in problems[0].message


def test_one_pod_in_two_pools_on_different_ports_is_no_fault():
    other = changed(named(POOL, "b"), ["spec", "targetPorts"], [{"number": 9000}])
    _, problems = Standing().pools(manifests(POOL, other, POD))
    assert problems == []


@pytest.mark.parametrize("order", [1, -1])
def test_of_two_pods_with_one_address_the_one_that_is_ready_stands(order):
    waiting = changed(named(POD, "aaa"), ["status", "conditions"], [])
    waiting = changed(waiting, ["status", "conditions"], [{"type": "Ready", "status": "False"}])
    found, problems = Standing().pools(manifests(POOL, *[POD, waiting][::order]))
    assert [each.pod for each in found["prod/llama"].endpoints] == ["prod/llama-0"]
    assert told(problems) == [("Pod prod/aaa", Reason.ADDRESS_CONFLICT, "")]


def test_a_pod_that_is_going_may_still_have_its_successors_address():
    going = changed(named(POD, "aaa"), ["metadata", "deletionTimestamp"], "2026-01-01T00:00:00Z")
    found, problems = Standing().pools(manifests(POOL, going, POD))
    assert [each.pod for each in found["prod/llama"].endpoints] == ["prod/llama-0"]
    assert problems == []


def test_a_port_that_is_listed_twice_is_one_endpoint():
    pool = changed(POOL, ["spec", "targetPorts"], [{"number": 8000}, {"number": 8000}])
    found, problems = Standing().pools(manifests(pool, POD))
    assert len(found["prod/llama"].endpoints) == 1
    assert problems == []


OBJECTIVE = """
apiVersion: inference.networking.x-k8s.io/v1alpha2
kind: InferenceObjective
metadata: {name: batch, namespace: prod}
spec: {priority: -1, poolRef: {name: llama}}
"""
breakages = st.sampled_from(
    [
        (["metadata", "annotations"], {"weir.dev/mode": "stop"}),
        (["metadata", "annotations"], {"weir.dev/drain": "maybe", "weir.dev/capacity": "2"}),
        (["metadata", "annotations"], {"weir.dev/": "", "weir.dev/policy": ""}),
        (["spec", "targetPorts"], [{"number": 70000}]),
        (["spec", "selector"], {"matchLabels": {}}),
        (["metadata", "labels"], {}),
        (["status"], {"podIP": "not an address", "phase": "Running"}),
        (["metadata", "name"], "llama"),
    ]
)
KINDS = {"pool": POOL, "pod": POD, "objective": OBJECTIVE}


@given(st.lists(st.lists(st.tuples(st.sampled_from(sorted(KINDS)), breakages), max_size=6)))
def test_nothing_that_is_wrong_with_one_object_costs_another(history):
    """Beside whatever happens in its namespace, a pool of another keeps what it has."""
    good = [
        changed(changed(text, ["metadata", "namespace"], "calm"), ["metadata", "name"], name)
        for text, name in ((annotated(POOL, policy="weights"), "p"), (POD, "q"))
    ]
    alone = registry.pools(manifests(*good))
    standing = Standing()
    for broken in history:
        objects = [
            _broken(KINDS[kind], path, value, number)
            for number, (kind, (path, value)) in enumerate(broken)
        ]
        found, problems = standing.pools(manifests(*objects, *good))
        assert found["calm/p"] == alone["calm/p"]
        assert not [each for each in problems if each.namespace == "calm"]
        assert len(problems) == len(set(problems))


def test_a_pod_that_did_not_change_is_the_endpoint_that_it_was():
    standing, other = Standing(), at(named(POD, "llama-1"), "10.0.0.8")
    pool, calm, before = manifests(POOL, annotated(POD, capacity="2"), other)
    first = standing.pools([pool, calm, before])[0]["prod/llama"].endpoints
    values = standing.values(calm, On.POD)
    (after,) = manifests(annotated(other, drain="true"))
    second = standing.pools([pool, calm, after])[0]["prod/llama"].endpoints
    assert second[0] is first[0]
    assert standing.values(calm, On.POD) is values
    assert (first[1].draining, second[1].draining) == (False, True)


def test_a_pod_that_is_gone_is_forgotten():
    standing, pool = Standing(), manifests(POOL)
    (pod,) = manifests(annotated(POD, capacity="2"))
    manifest, known = sys.getrefcount(pod), sys.getrefcount(pod.object)
    standing.pools([*pool, pod])
    assert sys.getrefcount(pod) > manifest
    assert sys.getrefcount(pod.object) > known
    standing.pools(pool)
    assert (sys.getrefcount(pod), sys.getrefcount(pod.object)) == (manifest, known)


NODE = """
apiVersion: v1
kind: Node
metadata: {name: n0, labels: {topology.kubernetes.io/zone: a}}
"""
FORMS = {
    name: [manifests(text) for text in texts]
    for name, texts in {
        "pool": [
            POOL,
            annotated(POOL, engine="sglang"),
            annotated(POOL, engine="quick"),
            changed(POOL, ["spec", "targetPorts"], [{"number": 8000}, {"number": 8001}]),
        ],
        "node": [
            NODE,
            changed(NODE, ["metadata", "labels", "topology.kubernetes.io/zone"], "b"),
            "",
        ],
        "pod": [
            changed(POD, ["spec", "nodeName"], "n0"),
            annotated(POD, drain="true", capacity="2"),
            annotated(POD, drain="perhaps", capacity="much"),
            at(POD, "10.0.0.8"),
            changed(POD, ["metadata", "labels", "app"], "other"),
            "",
        ],
        "rival": [at(named(POD, "rival"), "10.0.0.8"), named(POD, "rival"), ""],
    }.items()
}


@given(st.lists(st.fixed_dictionaries({n: st.sampled_from(f) for n, f in FORMS.items()})))
def test_what_is_remembered_of_an_object_is_what_would_be_made_of_it(history):
    """Beside one who remembers what was good, and makes the rest anew."""
    standing, forgetful, objects, before = Standing(), Standing(), {}, {}
    for forms in history:
        for name, form in forms.items():
            objects[name] = objects[name] if before.get(name) is form else anew(form)
        before = forms
        found = standing.pools(each for name in FORMS for each in objects[name])
        forgetful._said, forgetful._members = {}, {}
        assert found == forgetful.pools(each for name in FORMS for each in objects[name])


def anew(objects):
    return [Manifest(each.source, copy.copy(each.object)) for each in objects]


def _broken(text, path, value, number):
    document = yaml.safe_load(text)
    document["metadata"]["name"] = f"x{number}"
    place = document
    for key in path[:-1]:
        place = place.setdefault(key, {})
    kind = document["kind"]
    if path[0] == "spec" and kind != "InferencePool":
        return yaml.safe_dump(document)
    if path == ["status"] and kind != "Pod":
        return yaml.safe_dump(document)
    place[path[-1]] = copy.deepcopy(value)
    return yaml.safe_dump(document)
