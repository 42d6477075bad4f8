"""The two filters: digests of the prompt into headers, and the question to the picker.

On a gateway the digest filter has sources and runs none of them: a route of a pool's names one, and
the other routes of the gateway are neither buffered nor looked at. istiod's own ext_proc filter is
given an end to its patience there, and a route's override turns it to us.

On a waypoint no route of a Service with an HTTPRoute can be patched, so both filters stand in the
Service's own filter chain and are on. Where others of its routes go elsewhere, the digest filter
asks for the route's name first.

The picker is asked with headers alone: request headers out, nothing of the body, nothing of the
response. It is told in gRPC metadata which pools it may answer for, and whether the digests in the
headers are ours. A picker that is gone fails open at once; one that is silent, after
`MESSAGE_TIMEOUT`.
"""

from collections.abc import Sequence
from functools import cache
from importlib.resources import files

from xds.istio.shapes.policy import NAMESPACE, TYPES
from xds.istio.shapes.wiring import Host, Member, Object
from xds.pool import Body

LUA = "weir.digest"
EXT_PROC = "envoy.filters.http.ext_proc"  # istiod's name of it, which its routes' overrides have
SOURCE = "digest"
MESSAGE_TIMEOUT = "0.25s"
STREAM_TIMEOUT = "10s"
ATTRIBUTES = ["xds.cluster_name", "xds.route_name"]
LUA_TYPE = f"{TYPES}filters.http.lua.v3.Lua"
LUA_PER_ROUTE_TYPE = f"{TYPES}filters.http.lua.v3.LuaPerRoute"
EXT_PROC_TYPE = f"{TYPES}filters.http.ext_proc.v3.ExternalProcessor"
EXT_PROC_PER_ROUTE_TYPE = f"{TYPES}filters.http.ext_proc.v3.ExtProcPerRoute"
OURS = ("x-gateway-model-name", "x-weir-digest", "x-weir-affinity")


@cache
def digest_source() -> str:
    return files("xds").joinpath("digest.lua").read_text("utf-8")


def digest_only_on(routes: Sequence[str]) -> str:
    """The filter for a chain whose other routes it must leave alone.

    What a client sent under our names is gone on those too: the picker trusts it on this chain.
    """
    names = ", ".join(f"[{_quoted(route)}] = true" for route in routes)
    removed = "\n".join(f"    handle:headers():remove({_quoted(name)})" for name in OURS)
    return f"""{digest_source()}
local ROUTES = {{ {names} }}
local digest = envoy_on_request

function envoy_on_request(handle)
  if ROUTES[handle:streamInfo():routeName()] then
    digest(handle)
  else
{removed}
  end
end
"""


def idle_digest_filter() -> Object:
    """Holds the source, once, for the routes that name it; runs nothing by itself."""
    sources = {SOURCE: {"inline_string": digest_source()}}
    return {"name": LUA, "typed_config": {"@type": LUA_TYPE, "source_codes": sources}}


def running_digest_filter(only_routes: Sequence[str]) -> Object:
    source = digest_only_on(only_routes) if only_routes else digest_source()
    return {
        "name": LUA,
        "typed_config": {"@type": LUA_TYPE, "default_source_code": {"inline_string": source}},
    }


def digest_on_route() -> Object:
    return {LUA: {"@type": LUA_PER_ROUTE_TYPE, "name": SOURCE}}


def bounded_ext_proc() -> Object:
    """What is merged into istiod's ext_proc filter, whose own patience is 1,000 s."""
    return {
        "typed_config": {
            "@type": EXT_PROC_TYPE,
            "message_timeout": MESSAGE_TIMEOUT,
            "request_attributes": ATTRIBUTES,
        }
    }


def ext_proc(members: Sequence[Member]) -> Object:
    """The whole filter, for a waypoint, which has none."""
    service = _service(members)
    service["initial_metadata"] = _initial_metadata(members)
    return {
        "name": EXT_PROC,
        "typed_config": {
            "@type": EXT_PROC_TYPE,
            "grpc_service": service,
            "failure_mode_allow": True,
            "message_timeout": MESSAGE_TIMEOUT,
            "processing_mode": _processing_mode(members),
            "request_attributes": ATTRIBUTES,
            "metadata_options": _metadata_options(),
        },
    }


def ext_proc_on_route(members: Sequence[Member]) -> Object:
    """A route's override, whole: Envoy replaces an override, it does not merge it.

    Without members the route asks nobody, whatever istiod says.
    """
    override: Object = {"@type": EXT_PROC_PER_ROUTE_TYPE}
    if members:
        override["overrides"] = {
            "failure_mode_allow": True,
            "grpc_service": _service(members),
            "grpc_initial_metadata": _initial_metadata(members),
            "processing_mode": _processing_mode(members),
        }
    else:
        override["disabled"] = True
    return {EXT_PROC: override}


def picker_of(members: Sequence[Member]) -> Host:
    return members[0].picker


def _service(members: Sequence[Member]) -> Object:
    cluster = picker_of(members).cluster
    return {"envoy_grpc": {"cluster_name": cluster}, "timeout": STREAM_TIMEOUT}


def _initial_metadata(members: Sequence[Member]) -> list[Object]:
    pools = ",".join(member.pool for member in members)
    # Whoever picks has digests made: the filter ran before us.
    return [{"key": "x-weir-pool", "value": pools}, {"key": "x-weir-digests", "value": "v1"}]


def _processing_mode(members: Sequence[Member]) -> Object:
    return {
        "request_header_mode": "SEND",
        "request_body_mode": "BUFFERED" if _buffers(members) else "NONE",
        "request_trailer_mode": "SKIP",
        "response_header_mode": "SKIP",
        "response_body_mode": "NONE",
        "response_trailer_mode": "SKIP",
    }


def _buffers(members: Sequence[Member]) -> bool:
    return any(member.policy.body is Body.BUFFERED for member in members)


def _metadata_options() -> Object:
    namespaces = {"untyped": [NAMESPACE]}
    return {"receiving_namespaces": namespaces, "forwarding_namespaces": namespaces}


def _quoted(text: str) -> str:
    """A Lua string; whatever is no plain name is escaped, byte by byte."""
    plain = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.")
    return '"' + "".join(chr(b) if b in plain else f"\\{b:03d}" for b in text.encode()) + '"'
