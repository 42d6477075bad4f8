"""What an operator has, as YAML, and what becomes of it."""

from xds import registry
from xds.istio.objects import KINDS
from xds.istio.shapes.build import build
from xds.istio.shapes.choice import wirings
from xds.istio.shapes.inventory import inventory
from xds.istio.shapes.question import Question
from xds.istio.shapes.wiring import Host, Istio, Shape, Version
from xds.manifests import read

XDS = Host("weir", "weir-xds", 15010)
SHADOW = "outbound|54321||llm-pool-ip-1c222a41.ns.svc.cluster.local"
VIP = "inbound-vip|8000|http|llm.ns.svc.cluster.local"

POOL = """
apiVersion: inference.networking.k8s.io/v1
kind: InferencePool
metadata: {name: llm-pool, namespace: ns, annotations: {%s}}
spec:
  selector: {matchLabels: {app: llm}}
  targetPorts: [{number: 8000}]
  endpointPickerRef: {name: llm-epp, port: {number: 9002}, failureMode: FailOpen}
"""
GATEWAY = """
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: inference-gateway, namespace: ns}
spec: {gatewayClassName: istio, listeners: [{name: http, port: 80, protocol: HTTP}]}
"""
WAYPOINT = """
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: waypoint, namespace: ns}
spec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}
"""
SERVICE = """
apiVersion: v1
kind: Service
metadata: {name: llm, namespace: ns, labels: {istio.io/use-waypoint: waypoint}}
spec: {selector: {app: llm}, ports: [{name: http, port: 8000, targetPort: 8000}]}
"""
SECOND = """
apiVersion: v1
kind: Service
metadata: {name: llm-past, namespace: ns, labels: {istio.io/use-waypoint: none}}
spec: {selector: {app: llm}, ports: [{name: http, port: 8000, targetPort: 8000}]}
"""
TO_POOL = "{group: inference.networking.k8s.io, kind: InferencePool, name: %s}"
AT_GATEWAY, AT_SERVICE = "{name: inference-gateway}", "{group: '', kind: Service, name: llm}"


def route(*rules, name="llm-route", parents=(AT_GATEWAY,), accepted="True", unresolved=""):
    """An HTTPRoute; a rule is its body in YAML's flow style, `unresolved` a reason."""
    listed = "".join(f"\n  - {rule}" for rule in rules)
    status = "status:\n  parents:" + "".join(
        f"""
  - parentRef: {parent}
    controllerName: istio.io/{"mesh" if "Service" in parent else "gateway"}-controller
    conditions:
    - {{type: Accepted, status: "{accepted}", reason: R, message: why}}
    - {{type: ResolvedRefs, status: "{not unresolved}", reason: "{unresolved}", message: why}}"""
        for parent in parents
    )
    return f"""
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: {name}, namespace: ns}}
spec:
  parentRefs: [{", ".join(parents)}]
  rules:{listed}
{status if accepted else ""}"""


def to(*pools, extra=""):
    backends = ", ".join(TO_POOL % pool for pool in pools)
    return f"{{{extra}backendRefs: [{backends}]}}"


def pool(**annotations):
    return POOL % ", ".join(
        f"weir.dev/{k.replace('_', '-')}: '{v}'" for k, v in annotations.items()
    )


OTHER_POOL = pool().replace("llm-pool", "other").replace("{app: llm}", "{app: other}")
HAVE = {
    Shape.GATEWAY: (pool(), GATEWAY, route(to("llm-pool"))),
    Shape.GATEWAY_OWN_CLUSTER: (pool(), GATEWAY, route(to("llm-pool"))),
    Shape.WAYPOINT_INFERENCEPOOL: (
        pool(),
        WAYPOINT,
        SERVICE,
        route(to("llm-pool"), name="llm-gamma", parents=[AT_SERVICE]),
    ),
    Shape.WAYPOINT_SECOND_SERVICE: (
        pool(),
        WAYPOINT,
        SERVICE,
        SECOND,
        route("{backendRefs: [{name: llm-past, port: 8000}]}", name="llm", parents=[AT_SERVICE]),
    ),
    Shape.WAYPOINT_OWN_CLUSTER: (pool(), WAYPOINT, SERVICE),
}


def version_for(shape):
    return "1.30" if shape is Shape.GATEWAY_OWN_CLUSTER else "1.32"


def asked(*documents, name="ns/llm-pool", version="1.32", **more):
    manifests = read("\n---\n".join(documents), "have.yaml", KINDS)
    found = inventory(manifests)
    policies = {key: each.policy for key, each in registry.pools(manifests).items()}
    istio = Istio(Version(*map(int, version.split("."))))
    return Question(found.pool(name), found, policies, istio, XDS, **more)


def plans(*documents, **more):
    return [build(wiring) for wiring in wirings(asked(*documents, **more))]


def plan(*documents, **more):
    (only,) = plans(*documents, **more)
    return only


def plan_of(shape):
    return plan(*HAVE[shape], version=version_for(shape))


def patches(made, *, step=None, apply_to=None):
    """Every patch of a plan, in the order of its objects."""
    return [
        each
        for part in made.steps
        if step in (None, part.number)
        for item in part.objects
        if item["kind"] == "EnvoyFilter"
        for each in item["spec"]["configPatches"]
        if apply_to in (None, each["applyTo"])
    ]


def values(made, **wanted):
    return [each["patch"]["value"] for each in patches(made, **wanted)]
