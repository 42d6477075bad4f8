"""The way to an API server: where it is, who we are there, bytes in and bytes out.

Configuration, credentials and transport are the official client's (`kubernetes.aio`); its models
are not used, they cost more than the rest of us together. It is an extra, imported when the first
connection is made.

    --kubeconfig or --context, or KUBECONFIG set    that kubeconfig
    in a Pod                                        its service account
    else                                            ~/.kube/config

A service account's token is read anew every minute. Everything else (a token of an exec plugin, a
kubeconfig that was rewritten, a rotated authority) is loaded again when the API server does not
know us or we do not know it, at most every `RELOAD_SECONDS`; open watches are then resumed.

Dead peers are found by TCP too: the connection is probed when it is quiet for `PROBE_SECONDS`.
"""

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import yaml

from xds.sources import answers
from xds.sources.answers import Failure

CONNECT_SECONDS = 5.0
ANSWER_SECONDS = 60.0
RELOAD_SECONDS = 10.0
PROBE_SECONDS = 15
LINE_BYTES = 16 << 20
JSON = "application/json"
CONTENT = {"PATCH": "application/merge-patch+json"}
APPLY = "application/apply-patch+yaml"
IN_CLUSTER = "KUBERNETES_SERVICE_HOST"


class ClusterError(ConnectionError):
    """No way to an API server is configured, or it makes no sense; the message says what to do."""


class Unreachable(Exception):
    """There was no answer, or it broke off."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """Which API server; the usual one where nothing is said."""

    kubeconfig: Path | None = None
    context: str | None = None


class Answer:
    """The beginning of an answer; the rest is read when it is wanted."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self.status = response.status
        self._response = response

    async def body(self) -> bytes:
        """Raises `Unreachable`."""
        try:
            return await self._response.read()
        except (aiohttp.ClientError, OSError) as error:
            raise Unreachable(_said(error)) from error

    async def failure(self) -> Failure:
        retry_after = self._response.headers.get("Retry-After", "")
        return answers.failure(self.status, await self.body(), retry_after)

    async def lines(self) -> AsyncIterator[bytes]:
        """Lines as they come. Raises `Unreachable` where the answer breaks off."""
        rest = b""
        try:
            async for chunk in self._response.content.iter_any():
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    yield line
                if len(rest) > LINE_BYTES:
                    raise Unreachable(f"a line of more than {LINE_BYTES} bytes")
        except (aiohttp.ClientError, OSError) as error:
            raise Unreachable(_said(error)) from error
        if rest:
            yield rest


class _Question(NamedTuple):
    method: str
    path: str
    query: Mapping[str, str]
    body: Any
    seconds: float | None
    content: str


class Connection:
    """Requests to one API server."""

    def __init__(self, cluster: Cluster, reload_seconds: float = RELOAD_SECONDS) -> None:
        self._cluster = cluster
        self._reload_seconds = reload_seconds
        self._api: Any = None
        self._loaded = float("-inf")
        self._loading = asyncio.Lock()
        self._doubtful = False  # whether a load may help

    @property
    def host(self) -> str:
        return str(self._api.configuration.host)

    async def open(self) -> None:
        """Raises `ClusterError`."""
        await self._load()

    async def close(self) -> None:
        if self._api is not None:
            await self._api.close()

    @asynccontextmanager
    async def request(  # noqa: PLR0913 - what a request is made of
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Any = None,
        *,
        seconds: float | None = ANSWER_SECONDS,
        content: str = "",
    ) -> AsyncIterator[Answer]:
        """Ask; the answer is closed with the block. Raises `Unreachable`.

        `content` is the body's type, where it is not what the method usually has.
        """
        content = content or CONTENT.get(method, JSON)
        asked = _Question(method, path, query or {}, body, seconds, content)
        response = await self._ask(asked)
        if response.status == 401 and await self._reload():
            response.close()
            response = await self._ask(asked)
        try:
            yield Answer(response)
        finally:
            response.close()

    async def _ask(self, asked: "_Question") -> aiohttp.ClientResponse:
        if self._doubtful:
            await self._reload()
        api = self._api
        timeout = aiohttp.ClientTimeout(total=asked.seconds, sock_connect=CONNECT_SECONDS)
        try:
            verb, url, headers, content, _ = await api.param_serialize(
                asked.method,
                asked.path,
                query_params=list(asked.query.items()),
                header_params={
                    "Accept": "application/json",
                    "Content-Type": asked.content,
                },
                body=asked.body,
                auth_settings=["BearerToken"],
            )
            answer = await api.rest_client.request(
                verb, url, headers=headers, body=content, _request_timeout=timeout
            )
        except (aiohttp.ClientError, OSError, RuntimeError) as error:
            # A RuntimeError is a session that was closed meanwhile, by a load.
            self._doubtful = isinstance(error, aiohttp.ClientSSLError)
            raise Unreachable(_said(error)) from error
        response: aiohttp.ClientResponse = answer.response
        return response

    async def _reload(self) -> bool:
        """Load the configuration again, if that was not done just now."""
        self._doubtful = False
        async with self._loading:
            now = asyncio.get_running_loop().time()
            if now - self._loaded < self._reload_seconds:
                return False
            try:
                await self._load()
            except ClusterError as error:
                raise Unreachable(str(error)) from error
            return True

    async def _load(self) -> None:
        self._loaded = asyncio.get_running_loop().time()
        before, self._api = self._api, await _client(self._cluster)
        if before is not None:
            await before.close()


@asynccontextmanager
async def connected(cluster: Cluster) -> AsyncIterator[Connection]:
    """A connection for as long as the block runs. Raises `ClusterError`."""
    connection = Connection(cluster)
    try:
        await connection.open()
        yield connection
    finally:
        await connection.close()


async def _client(cluster: Cluster) -> Any:
    try:
        from kubernetes.aio import client, config  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise ClusterError(
            "the Kubernetes client is not installed: pip install 'weir[kubernetes]'"
        ) from error
    configuration = client.Configuration()
    try:
        if path := _kubeconfig(cluster):
            await config.load_kube_config(
                config_file=path,
                context=cluster.context,
                client_configuration=configuration,
                persist_config=False,
            )
        else:
            config.load_incluster_config(client_configuration=configuration)
        api = client.ApiClient(configuration, "User-Agent", "weir")
    except (
        config.ConfigException,
        *(OSError, ValueError, TypeError, KeyError, AttributeError, yaml.YAMLError),
    ) as error:
        raise ClusterError(
            f"no way to an API server: {_said(error)}; name a kubeconfig with --kubeconfig, and a "
            "context in it with --context"
        ) from error
    api.rest_client.pool_manager = aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(
            limit=0,  # a watch holds its connection
            ssl=api.rest_client.ssl_context,
            socket_factory=_probing,
        ),
        trust_env=True,
    )
    return api


def _kubeconfig(cluster: Cluster) -> str | None:
    """Paths as KUBECONFIG has them; None in a Pod, whose service account is used."""
    if cluster.kubeconfig is not None:
        if not cluster.kubeconfig.is_file():
            raise FileNotFoundError(f"{cluster.kubeconfig}: no such file")
        return str(cluster.kubeconfig)
    if paths := os.environ.get("KUBECONFIG"):
        return paths
    if IN_CLUSTER in os.environ and cluster.context is None:
        return None
    default = Path("~/.kube/config").expanduser()
    if not default.is_file():
        raise FileNotFoundError(f"neither in a Pod, nor KUBECONFIG set, nor {default} there")
    return str(default)


def _said(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _probing(address: Any) -> socket.socket:
    """A socket on which the kernel notices a peer that went away without a word."""
    family, kind, protocol, _, _ = address
    made = socket.socket(family, kind, protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", PROBE_SECONDS), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, name):
            made.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return made
