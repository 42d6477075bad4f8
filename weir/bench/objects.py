"""Kubernetes objects as long as real ones: vLLM Deployments' Pods, their Services, pools and Nodes.

A Pod of a cluster is some 8 kB of JSON, of which Weir wants a tenth. Half of the rest is
managedFields, where the API server notes who set which field; here it is made of the object as the
API server would make it.
"""

from typing import Any, TypeAlias

from xxhash import xxh3_64_intdigest

Document: TypeAlias = dict[str, Any]
NAMESPACE = "bench"
PORT_NAME = "http"
CREATED = "2026-11-20T08:00:00Z"
NODES = 125


def pool(name: str, port: int, interval: str) -> Document:
    """An InferencePool whose servers are asked every `interval`."""
    spec = {
        "selector": {"matchLabels": {"app": name}},
        "targetPorts": [{"number": port}],
        "endpointPickerRef": {"name": f"{name}-epp", "port": {"number": 9002}},
    }
    return {
        "apiVersion": "inference.networking.k8s.io/v1",
        "kind": "InferencePool",
        "metadata": _metadata(name, {"app.kubernetes.io/part-of": "bench"})
        | {
            "generation": 1,
            "annotations": {"weir.dev/scrape-interval": interval},
            "managedFields": [_managed("helm", {"spec": spec})],
        },
        "spec": spec,
    }


def service(name: str, port: int) -> Document:
    """The ClusterIP Service over a pool's Pods, as a waypoint has it."""
    spec = {
        "type": "ClusterIP",
        "clusterIP": "10.96.0.10",
        "selector": {"app": name},
        "ports": [{"name": PORT_NAME, "port": 80, "targetPort": port, "protocol": "TCP"}],
    }
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _metadata(name, {"app": name})
        | {"managedFields": [_managed("helm", {"spec": spec})]},
        "spec": spec,
        "status": {"loadBalancer": {}},
    }


def node(number: int) -> Document:
    """A machine, in one of three zones."""
    name = f"gpu-node-{number}"
    labels = {
        "kubernetes.io/hostname": name,
        "node.kubernetes.io/instance-type": "p5.48xlarge",
        "topology.kubernetes.io/region": "eu-west-1",
        "topology.kubernetes.io/zone": f"eu-west-1{'abc'[number % 3]}",
    }
    status = {
        "addresses": [{"type": "InternalIP", "address": f"10.128.{number // 250}.{number % 250}"}],
        "capacity": {"cpu": "192", "memory": "2Ti", "nvidia.com/gpu": "8", "pods": "250"},
        "images": [
            {"names": [f"registry.example/{n}@sha256:{n:064x}"], "sizeBytes": 9_876_543_210}
            for n in range(40)
        ],
    }
    metadata = _metadata(name, labels) | {
        "managedFields": [_managed("kubelet", {"status": status}, "status")]
    }
    del metadata["namespace"]
    return {"apiVersion": "v1", "kind": "Node", "metadata": metadata, "status": status}


def pod(name: str, app: str, address: str, port: int, *, ready: bool = True) -> Document:
    """A Pod of a pool, captured by ztunnel; without an address it has only been scheduled."""
    labels = {
        "app": app,
        "app.kubernetes.io/name": app,
        "app.kubernetes.io/version": "v0.32.0",
        "pod-template-hash": "7c9d8f6b5d",
    }
    annotations = {
        "ambient.istio.io/redirection": "enabled",
        "kubectl.kubernetes.io/restartedAt": CREATED,
        "prometheus.io/scrape": "true",
        "prometheus.io/port": str(port),
    }
    metadata = _metadata(name, labels) | {
        "generateName": f"{app}-7c9d8f6b5d-",
        "annotations": annotations,
        "ownerReferences": [
            {
                "apiVersion": "apps/v1",
                "kind": "ReplicaSet",
                "name": f"{app}-7c9d8f6b5d",
                "uid": _uid(app),
                "controller": True,
                "blockOwnerDeletion": True,
            }
        ],
    }
    spec = _pod_spec(app, port) | {"nodeName": f"gpu-node-{digest(name) % NODES}"}
    status = _pod_status(address, ready=ready)
    said = {"metadata": {"labels": labels, "annotations": annotations}, "spec": spec}
    metadata["managedFields"] = [
        _managed("kube-controller-manager", said),
        _managed("kubelet", {"status": status}, "status"),
    ]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": metadata,
        "spec": spec,
        "status": status,
    }


def digest(name: str) -> int:
    """The same on every run."""
    return xxh3_64_intdigest(name.encode())


def called(number: int) -> str:
    """What a pool, its Service and its Pods' label are called."""
    return f"pool-{number}"


def _metadata(name: str, labels: dict[str, str]) -> Document:
    return {
        "name": name,
        "namespace": NAMESPACE,
        "uid": _uid(name),
        "creationTimestamp": CREATED,
        "labels": labels,
    }


def _uid(name: str) -> str:
    text = f"{digest(name):016x}"
    return f"{text[:8]}-{text[8:12]}-4a5b-8c7d-{text[4:]}"


def _managed(manager: str, said: Document, subresource: str = "") -> Document:
    entry = {
        "manager": manager,
        "operation": "Update",
        "apiVersion": "v1",
        "time": CREATED,
        "fieldsType": "FieldsV1",
        "fieldsV1": _fields(said),
    }
    return entry | ({"subresource": subresource} if subresource else {})


def _fields(value: Any) -> Document:
    """A value's own fields, as managedFields names them."""
    if isinstance(value, dict):
        return {f"f:{key}": _fields(each) for key, each in value.items()}
    if isinstance(value, list):
        return {_item(each): {".": {}} | _fields(each) for each in value}
    return {}


def _item(value: Any) -> str:
    """An item of a list, by what makes it itself there."""
    if not isinstance(value, dict):
        return f'v:"{value}"'
    key = next(key for key in ("name", "type", "key", "ip", "mountPath", *value) if key in value)
    return f'k:{{"{key}":"{value[key]}"}}'


def _pod_spec(app: str, port: int) -> Document:
    probe = {"httpGet": {"path": "/health", "port": PORT_NAME, "scheme": "HTTP"}}
    return {
        "serviceAccountName": app,
        "schedulerName": "default-scheduler",
        "restartPolicy": "Always",
        "terminationGracePeriodSeconds": 130,
        "priority": 0,
        "containers": [_container(app, port, probe)],
        "volumes": [
            {"name": "models", "persistentVolumeClaim": {"claimName": f"{app}-models"}},
            {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "16Gi"}},
            {"name": "token", "projected": {"defaultMode": 420, "sources": []}},
        ],
        "tolerations": [
            {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"},
            {"key": "node.kubernetes.io/not-ready", "operator": "Exists", "tolerationSeconds": 300},
        ],
        "affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": []}},
        "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
    }


def _container(app: str, port: int, probe: Document) -> Document:
    names = (
        "HF_HOME VLLM_CACHE_ROOT VLLM_ATTENTION_BACKEND VLLM_LOGGING_LEVEL VLLM_WORKER_MULTIPROC "
        "NCCL_DEBUG NCCL_SOCKET_IFNAME CUDA_VISIBLE_DEVICES LD_LIBRARY_PATH POD_NAME POD_IP"
    )
    return {
        "name": "vllm",
        "image": "vllm/vllm-openai:v0.32.0",
        "imagePullPolicy": "IfNotPresent",
        "command": ["vllm", "serve", f"/models/{app}", "--port", str(port)],
        "args": ["--enable-prefix-caching", "--max-model-len", "32768", "--enable-lora"],
        "env": [{"name": name, "value": f"/var/lib/{name.lower()}"} for name in names.split()],
        "ports": [{"name": PORT_NAME, "containerPort": port, "protocol": "TCP"}],
        "resources": {
            "limits": {"cpu": "16", "memory": "128Gi", "nvidia.com/gpu": "1"},
            "requests": {"cpu": "8", "memory": "64Gi", "nvidia.com/gpu": "1"},
        },
        "volumeMounts": [
            {"name": "models", "mountPath": "/models", "readOnly": True},
            {"name": "shm", "mountPath": "/dev/shm"},  # noqa: S108 - a mount, not a file of ours
            {"name": "token", "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount"},
        ],
        "startupProbe": probe | {"failureThreshold": 60, "periodSeconds": 10},
        "livenessProbe": probe | {"failureThreshold": 3, "periodSeconds": 10},
        "readinessProbe": probe | {"failureThreshold": 3, "periodSeconds": 5},
        "lifecycle": {"preStop": {"exec": {"command": ["sleep", "30"]}}},
        "terminationMessagePath": "/dev/termination-log",
    }


def _pod_status(address: str, *, ready: bool) -> Document:
    said = {
        "PodReadyToStartContainers": bool(address),
        "Initialized": True,
        "Ready": ready,
        "ContainersReady": ready,
        "PodScheduled": True,
    }
    conditions = [
        {"type": name, "status": str(true), "lastProbeTime": None, "lastTransitionTime": CREATED}
        for name, true in said.items()
    ]
    if not address:
        return {"phase": "Pending", "conditions": conditions, "qosClass": "Burstable"}
    return {
        "phase": "Running",
        "conditions": conditions,
        "hostIP": "10.128.0.7",
        "podIP": address,
        "podIPs": [{"ip": address}],
        "startTime": CREATED,
        "containerStatuses": [
            {
                "name": "vllm",
                "image": "vllm/vllm-openai:v0.32.0",
                "imageID": f"docker.io/vllm/vllm-openai@sha256:{'5b' * 32}",
                "containerID": f"containerd://{'e1' * 32}",
                "ready": ready,
                "started": ready,
                "restartCount": 0,
                "state": {"running": {"startedAt": CREATED}},
                "lastState": {},
            }
        ],
        "qosClass": "Burstable",
    }
