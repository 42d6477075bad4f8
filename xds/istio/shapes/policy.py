"""The three tiers as one load balancing policy, as JSON.

override_host takes the picker's word, maglev with bounded load goes by a header where there is
none, and both go by our weights. The header is named in the policy, so no route is patched for it.

One policy, and nothing after it: a proxy takes the first policy that it knows, and all proxies that
an EnvoyFilter reaches are Envoys that know these. gRPC's own clients are told by istiod's gRPC
generator, which applies no EnvoyFilter.
"""

from xds.istio.shapes.wiring import Istio, Object
from xds.pool import Affinity, Policy, Tier

TYPES = "type.googleapis.com/envoy.extensions."
AFFINITY, MODEL = "x-weir-affinity", "x-gateway-model-name"
NAMESPACE = "envoy.lb"
DESTINATION = "x-gateway-destination-endpoint"
SERVED = "x-gateway-destination-endpoint-served"


def load_balancing_policy(policy: Policy, istio: Istio) -> Object:
    return {"policies": [_of_tier(policy, istio)]}


def _of_tier(policy: Policy, istio: Istio) -> Object:
    match policy.tier:
        case Tier.LEAST_REQUEST:
            return _policy("least_request", "LeastRequest")
        case Tier.WEIGHTS | Tier.ROUND_ROBIN:
            return _policy("round_robin", "RoundRobin")
        case Tier.AFFINITY:
            return _affinity(policy)
        case Tier.PICK:
            return _pick(policy, istio)


def _pick(policy: Policy, istio: Istio) -> Object:
    fields: Object = {"override_host_sources": [{"metadata": _key(DESTINATION)}]}
    if istio.tells_served:
        fields["selected_host_key"] = _key(SERVED)
    fields["fallback_policy"] = {"policies": [_affinity(policy)]}
    return _policy("override_host", "OverrideHost", **fields)


def _affinity(policy: Policy) -> Object:
    hashing = {
        "hash_balance_factor": policy.hash_balance_factor,
        "hash_policy": _hash_keys(policy),
    }
    return _policy("maglev", "Maglev", consistent_hashing_lb_config=hashing)


def _hash_keys(policy: Policy) -> list[Object]:
    """What keeps requests together; the first that a request has is its key."""
    *before, last = {
        Affinity.PREFIX: [AFFINITY],
        Affinity.ADAPTER: [MODEL],
        Affinity.SESSION: [policy.session_header, AFFINITY],
    }[policy.affinity]
    first = [{"header": {"header_name": name}, "terminal": True} for name in before]
    return [*first, {"header": {"header_name": last}}]


def _policy(name: str, message: str, **fields: object) -> Object:
    return {
        "typed_extension_config": {
            "name": f"envoy.load_balancing_policies.{name}",
            "typed_config": {
                "@type": f"{TYPES}load_balancing_policies.{name}.v3.{message}",
                **fields,
            },
        }
    }


def _key(name: str) -> Object:
    return {"key": NAMESPACE, "path": [{"key": name}]}
