"""Our merge of JSON objects beside protobuf's own merge of the same messages."""

from copy import deepcopy

import pytest
from envoy_data_plane.envoy.config.cluster.v3 import Cluster
from envoy_data_plane.envoy.config.core.v3 import ConfigSource
from envoy_data_plane.envoy.config.endpoint.v3 import ClusterLoadAssignment
from google.protobuf.json_format import MessageToDict, ParseDict
from hypothesis import given
from hypothesis import strategies as st

from integration.merging import merge
from integration.messages import canonical
from xds.proto.envoy.config.core.v3 import config_source_pb2
from xds.proto.envoy.config.endpoint.v3 import endpoint_pb2

# Whole ones and parts, so that protobuf, which merges a Duration's fields, replaces it too.
durations = st.sampled_from(["1.500s", "2.250s"])
names = st.sampled_from(["a", "b"])
ports = st.sampled_from([80, 81])
settings = st.fixed_dictionaries(
    {}, optional={"max_tokens": st.integers(0, 3), "fill_rate": st.sampled_from([0.0, 1.5])}
)
services = st.fixed_dictionaries(
    {},
    optional={
        "envoy_grpc": st.fixed_dictionaries({"cluster_name": names}),
        "timeout": durations,
    },
)
api = st.fixed_dictionaries(
    {},
    optional={
        "api_type": st.sampled_from(
            ["GRPC", "DELTA_GRPC", "DEPRECATED_AND_UNAVAILABLE_DO_NOT_USE"]
        ),
        "cluster_names": st.lists(names, max_size=2),
        "grpc_services": st.lists(services, max_size=2),
        "refresh_delay": durations,
        "rate_limit_settings": settings,
        "set_node_on_first_message_only": st.booleans(),
    },
)
specifiers = st.one_of(
    st.just({}),
    st.just({"ads": {}}),
    st.fixed_dictionaries({"path_config_source": st.fixed_dictionaries({"path": names})}),
    st.fixed_dictionaries({"api_config_source": api}),
)
common = st.fixed_dictionaries(
    {}, optional={"initial_fetch_timeout": durations, "resource_api_version": st.just("V3")}
)
sources = st.builds(lambda one, other: one | other, specifiers, common)
policies = st.fixed_dictionaries(
    {},
    optional={
        "overprovisioning_factor": st.sampled_from([0, 140]),
        "weighted_priority_health": st.booleans(),
        "endpoint_stale_after": durations,
    },
)
addresses = st.builds(
    lambda port: {"address": {"socket_address": {"address": "127.0.0.1", "port_value": port}}},
    ports,
)
localities = st.fixed_dictionaries(
    {}, optional={"load_balancing_weight": st.integers(0, 2), "priority": st.integers(0, 1)}
)
assignments = st.fixed_dictionaries(
    {},
    optional={
        "cluster_name": names,
        "endpoints": st.lists(localities, max_size=2),
        "policy": policies,
        "named_endpoints": st.dictionaries(names, addresses, max_size=2),
    },
)


def agree(ours, theirs, into, value):
    """protobuf's merge is the twin; both results as messages, where a default is none."""
    twin = ParseDict(into, theirs())
    twin.MergeFrom(ParseDict(value, theirs()))
    merged = deepcopy(canonical(ours, into))
    merge(ours, merged, canonical(ours, value))
    as_dict = MessageToDict(ParseDict(merged, theirs()), preserving_proto_field_name=True)
    assert as_dict == MessageToDict(twin, preserving_proto_field_name=True)


@given(sources, sources)
def test_messages_oneofs_wrappers_and_lists_merge_as_protobuf_merges_them(into, value):
    agree(ConfigSource, config_source_pb2.ConfigSource, into, value)


@given(assignments, assignments)
def test_maps_merge_entry_by_entry_as_in_protobuf(into, value):
    agree(ClusterLoadAssignment, endpoint_pb2.ClusterLoadAssignment, into, value)


@pytest.mark.parametrize(("replace", "policies"), [(False, ["a", "b"]), (True, ["b"])])
def test_lists_are_replaced_where_that_is_asked_for(replace, policies):
    def of(name):
        return {"policies": [{"typed_extension_config": {"name": name}}]}

    cluster = {"load_balancing_policy": of("a")}
    merge(Cluster, cluster, {"load_balancing_policy": of("b")}, replace_lists=replace)
    found = cluster["load_balancing_policy"]["policies"]
    assert [each["typed_extension_config"]["name"] for each in found] == policies


def test_a_list_that_the_patch_does_not_have_stays_where_lists_are_replaced():
    cluster = {"load_balancing_policy": {"policies": [{}]}}
    merge(Cluster, cluster, {"load_balancing_policy": {}}, replace_lists=True)
    assert cluster == {"load_balancing_policy": {"policies": [{}]}}


def test_a_duration_is_replaced_where_protobuf_would_mix_two():
    cluster = {"connect_timeout": "10s"}
    merge(Cluster, cluster, canonical(Cluster, {"connect_timeout": "0.25s"}))
    assert cluster == {"connect_timeout": "0.250s"}


def test_a_wrapper_of_zero_changes_nothing_where_there_is_one():
    cluster = {"per_connection_buffer_limit_bytes": 32768}
    zero = canonical(Cluster, {"per_connection_buffer_limit_bytes": 0})
    merge(Cluster, cluster, zero)
    assert cluster == {"per_connection_buffer_limit_bytes": 32768}
    merge(Cluster, empty := {}, zero)
    assert empty == {"per_connection_buffer_limit_bytes": 0}


def test_an_any_is_replaced_whole():
    kind = "type.googleapis.com/envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer"
    socket = {"transport_socket": {"name": "a", "typed_config": {"@type": "x/y", "z": 1}}}
    merge(Cluster, socket, {"transport_socket": {"typed_config": {"@type": kind}}})
    assert socket["transport_socket"] == {"name": "a", "typed_config": {"@type": kind}}
