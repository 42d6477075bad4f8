"""A real etcd and kube-apiserver as processes on loopback, from the folder KUBEBUILDER_ASSETS.

Nothing but these two: no scheduler, no kubelet, no controllers. Pods are what a test says they are.
"""

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from integration.servers import assets
from weir.ports import free
from weir.processes import Child, start

ASSETS = assets("apiserver")
ADMIN = "administrator-of-a-test"


class ControlPlane:
    """etcd, and a kube-apiserver that can go away and come back.

    `services` is where Services' addresses are: a network in CIDR notation.
    """

    def __init__(self, directory: Path, client: aiohttp.ClientSession, services: str) -> None:
        self._directory, self._client, self._services = directory, client, services
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
                *("--service-cluster-ip-range", self._services),
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

    async def write(self, key: str, item: object) -> None:
        """Behind the API server's back, and past what it finds valid: it serves what etcd has."""
        body = {"key": _base64(key), "value": _base64(json.dumps(item))}
        await self._etcd("put", body)

    async def erase(self, key: str) -> int:
        """Behind the API server's back; the revision at which the key was no longer there."""
        answer = await self._etcd("deleterange", {"key": _base64(key)})
        assert answer.get("deleted") == "1", answer
        return int(answer["header"]["revision"])

    async def forget(self, key: str) -> None:
        """The same, and the history of how it came to that."""
        await self._etcd("compaction", {"revision": await self.erase(key)})

    async def _etcd(self, what: str, body: object) -> dict:
        url = f"http://127.0.0.1:{self._etcd_port}/v3/kv/{what}"
        async with self._client.post(url, json=body) as response:
            assert response.status == 200, await response.text()
            return await response.json(content_type=None)

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


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def _patiently(ready):
    async def asked() -> bool:
        try:
            return await ready()
        except aiohttp.ClientError:
            return False

    return asked


@asynccontextmanager
async def control_plane(
    directory: Path, *, services: str = "10.0.0.0/24"
) -> AsyncIterator[ControlPlane]:
    async with aiohttp.ClientSession() as client:
        running = ControlPlane(directory, client, services)
        try:
            await running.start()
            yield running
        finally:
            await running.stop()
            await asyncio.sleep(0)
