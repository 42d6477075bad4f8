"""The three tiers as one load balancing policy, as JSON.

override_host takes the picker's word, maglev with bounded load goes by a header where there is
none, and both go by our weights. The header is named in the policy, so no route is patched for it.

One policy, and nothing after it: a proxy takes the first policy that it knows, and all proxies that
an EnvoyFilter reaches are Envoys that know these. gRPC's own clients are told by istiod's gRPC
generator, which applies no EnvoyFilter.
"""

from xds.istio.shapes.wiring import Istio, Object, Tuning
from xds.pool import Tier

TYPES = "type.googleapis.com/envoy.extensions."
NAMESPACE = "envoy.lb"
DESTINATION = "x-gateway-destination-endpoint"
SERVED = "x-gateway-destination-endpoint-served"


def load_balancing_policy(tuning: Tuning, istio: Istio) -> Object:
    return {"policies": [_of_tier(tuning, istio)]}


def _of_tier(tuning: Tuning, istio: Istio) -> Object:
    match tuning.tier:
        case Tier.LEAST_REQUEST:
            return _policy("least_request", "LeastRequest")
        case Tier.WEIGHTS | Tier.ROUND_ROBIN:
            return _policy("round_robin", "RoundRobin")
        case Tier.AFFINITY:
            return _affinity(tuning)
        case Tier.PICK:
            return _pick(tuning, istio)


def _pick(tuning: Tuning, istio: Istio) -> Object:
    fields: Object = {"override_host_sources": [{"metadata": _key(DESTINATION)}]}
    if istio.tells_served:
        fields["selected_host_key"] = _key(SERVED)
    fields["fallback_policy"] = {"policies": [_affinity(tuning)]}
    return _policy("override_host", "OverrideHost", **fields)


def _affinity(tuning: Tuning) -> Object:
    hashing = {
        "hash_balance_factor": tuning.hash_balance_factor,
        "hash_policy": [{"header": {"header_name": tuning.hash_header}}],
    }
    return _policy("maglev", "Maglev", consistent_hashing_lb_config=hashing)


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
