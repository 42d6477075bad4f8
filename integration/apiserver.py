"""A real etcd and kube-apiserver as processes on loopback, from the folder KUBEBUILDER_ASSETS.

Nothing but these two: no scheduler, no kubelet, no controllers. Pods are what a test says they are.
"""

import asyncio
import base64
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from weir.ports import free
from weir.processes import Child, start

ASSETS = os.environ.get("KUBEBUILDER_ASSETS", "")
ADMIN = "administrator-of-a-test"


class ControlPlane:
    """etcd, and a kube-apiserver that can go away and come back."""

    def __init__(self, directory: Path, client: aiohttp.ClientSession) -> None:
        self._directory, self._client = directory, client
        self._etcd_port, self.port = free(), free()
        self._children: dict[str, Child] = {}

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    async def start(self) -> None:
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        (self._directory / "accounts.key").write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.TraditionalOpenSSL,
                serialization.NoEncryption(),
            )
        )
        tokens = self._directory / "tokens.csv"
        tokens.write_text(f'{ADMIN},admin,1,"system:masters"\n')
        await self._start_etcd()
        await self.start_apiserver()

    async def _start_etcd(self) -> None:
        url = f"http://127.0.0.1:{self._etcd_port}"
        peer = f"http://127.0.0.1:{free()}"
        child = await start(
            "etcd",
            [
                f"{ASSETS}/etcd",
                *("--data-dir", str(self._directory / "etcd")),
                *("--listen-client-urls", url, "--advertise-client-urls", url),
                *("--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer),
                *("--initial-cluster", f"default={peer}"),
                "--unsafe-no-fsync",
            ],
            self._directory / "etcd.log",
        )
        self._children["etcd"] = child

        async def healthy() -> bool:
            async with self._client.get(f"{url}/health") as response:
                return response.status == 200

        await child.until(_patiently(healthy), what="etcd was healthy")

    async def start_apiserver(self) -> None:
        accounts = str(self._directory / "accounts.key")
        child = await start(
            "kube-apiserver",
            [
                f"{ASSETS}/kube-apiserver",
                *("--etcd-servers", f"http://127.0.0.1:{self._etcd_port}"),
                *("--bind-address", "127.0.0.1", "--secure-port", str(self.port)),
                *("--cert-dir", str(self._directory / "certificates")),
                *("--token-auth-file", str(self._directory / "tokens.csv")),
                *("--authorization-mode", "RBAC"),
                *("--disable-admission-plugins", "ServiceAccount"),
                *("--service-account-issuer", "https://kubernetes.default.svc"),
                *("--service-account-key-file", accounts),
                *("--service-account-signing-key-file", accounts),
                *("--service-cluster-ip-range", "10.0.0.0/24"),
                *("--endpoint-reconciler-type", "none"),
            ],
            self._directory / "apiserver.log",
        )
        self._children["apiserver"] = child

        async def ready() -> bool:
            status, _ = await self.call("GET", "/readyz")
            return status == 200

        await child.until(_patiently(ready), what="the API server was ready")

    async def stop_apiserver(self) -> None:
        await self._children.pop("apiserver").kill()

    async def stop(self) -> None:
        for name in ("apiserver", "etcd"):
            if child := self._children.pop(name, None):
                await child.kill()

    async def call(self, method: str, path: str, body: object = None, kind: str = "json") -> tuple:
        """As the administrator; the status, and what came."""
        headers = {"Authorization": f"Bearer {ADMIN}", "Content-Type": f"application/{kind}"}
        async with self._client.request(
            method,
            self.url + path,
            data=None if body is None else json.dumps(body),
            headers=headers,
            ssl=False,
        ) as response:
            text = await response.text()
            is_json = response.content_type == "application/json"
            return response.status, json.loads(text) if is_json else text

    async def do(self, method: str, path: str, body: object = None, kind: str = "json") -> dict:
        """The same, and it must succeed."""
        status, answer = await self.call(method, path, body, kind)
        assert status in (200, 201, 202), (method, path, status, answer)
        return answer

    async def forget(self, key: str) -> None:
        """Behind the API server's back: delete a key, and the history of how it came to that."""
        url = f"http://127.0.0.1:{self._etcd_port}/v3/kv"
        name = base64.b64encode(key.encode()).decode()
        async with self._client.post(f"{url}/deleterange", json={"key": name}) as response:
            answer = await response.json(content_type=None)
            assert answer.get("deleted") == "1", answer
        revision = answer["header"]["revision"]
        async with self._client.post(f"{url}/compaction", json={"revision": revision}) as response:
            assert response.status == 200, await response.text()

    def kubeconfig(self, path: Path, token: str = ADMIN) -> Path:
        cluster = {"server": self.url, "insecure-skip-tls-verify": True}
        path.write_text(
            json.dumps(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "current-context": "it",
                    "contexts": [{"name": "it", "context": {"cluster": "it", "user": "me"}}],
                    "clusters": [{"name": "it", "cluster": cluster}],
                    "users": [{"name": "me", "user": {"token": token}}],
                }
            )
        )
        return path


def _patiently(ready):
    async def asked() -> bool:
        try:
            return await ready()
        except aiohttp.ClientError:
            return False

    return asked


@asynccontextmanager
async def control_plane(directory: Path) -> AsyncIterator[ControlPlane]:
    async with aiohttp.ClientSession() as client:
        running = ControlPlane(directory, client)
        try:
            await running.start()
            yield running
        finally:
            await running.stop()
            await asyncio.sleep(0)
