"""A real istiod, `pilot-discovery`, as a process on loopback beside a real API server.

It does all that istiod does to configure proxies: it watches the API server, makes the Services of
InferencePools, writes the status of routes, and answers over xDS in plaintext. What goes with
certificates, injection and the deployment of gateways is off: nobody here needs it.
"""

from pathlib import Path
from typing import Any

import aiohttp

from integration.servers import assets
from weir.ports import free
from weir.processes import Child, start

ASSETS = assets("istiod")
NAMESPACE = "istio-system"
ENVIRONMENT = {
    "PILOT_ENABLE_AMBIENT": "true",
    "ENABLE_GATEWAY_API_INFERENCE_EXTENSION": "true",
    "PILOT_ENABLE_GATEWAY_API_STATUS": "true",
    "PILOT_ENABLE_GATEWAY_API_DEPLOYMENT_CONTROLLER": "false",
    "PILOT_CERT_PROVIDER": "none",
    "ENABLE_CA_SERVER": "false",
    "INJECTION_WEBHOOK_CONFIG_NAME": "",
    "VALIDATION_WEBHOOK_CONFIG_NAME": "",
    "POD_NAMESPACE": NAMESPACE,
    "POD_NAME": "istiod-0",
    "CLUSTER_ID": "Kubernetes",
}


class Istiod:
    """`environment` is added to what it has by default."""

    def __init__(self, kubeconfig: Path, directory: Path, **environment: str) -> None:
        self._port, self._http, self._monitoring = free(), free(), free()
        self._kubeconfig, self._directory = kubeconfig, directory
        self._environment = ENVIRONMENT | environment
        self.child: Child | None = None

    @property
    def address(self) -> str:
        """Of its xDS server, HOST:PORT."""
        return f"127.0.0.1:{self._port}"

    async def start(self) -> None:
        """Returns when it has seen all that the API server has."""
        mesh = self._directory / "mesh.yaml"
        mesh.write_text("trustDomain: cluster.local\n")
        self.child = await start(
            "istiod",
            [
                *("env", *(f"{name}={value}" for name, value in self._environment.items())),
                *(f"{ASSETS}/pilot-discovery", "discovery"),
                *("--kubeconfig", str(self._kubeconfig), "--meshConfig", str(mesh)),
                *("--grpcAddr", self.address, "--httpAddr", f"127.0.0.1:{self._http}"),
                *("--monitoringAddr", f"127.0.0.1:{self._monitoring}"),
                *("--httpsAddr", "", "--secureGRPCAddr", "", "--ctrlz_port", "0"),
            ],
            self._directory / "istiod.log",
        )
        await self.child.until(self._ready, what="it was ready")

    async def stop(self) -> None:
        if self.child is not None:
            await self.child.kill()

    async def objections(self, document: dict[str, Any]) -> list[str]:
        """What its validating webhook says against an object, warnings included."""
        request = {"uid": "1", "operation": "CREATE", "object": document}
        api, _, version = document["apiVersion"].rpartition("/")
        request["kind"] = {"group": api, "version": version, "kind": document["kind"]}
        body = {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request}
        url = f"http://127.0.0.1:{self._http}/validate"
        async with aiohttp.ClientSession() as client, client.post(url, json=body) as response:
            said = (await response.json(content_type=None))["response"]
        refused = [] if said["allowed"] else [said["status"]["message"]]
        return [*refused, *said.get("warnings", ())]

    async def _ready(self) -> bool:
        url = f"http://127.0.0.1:{self._http}/ready"
        try:
            async with aiohttp.ClientSession() as client, client.get(url) as response:
                return response.status == 200
        except aiohttp.ClientError:
            return False
