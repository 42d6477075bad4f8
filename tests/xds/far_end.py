"""What ztunnel is to a captured Pod, in small: it ends HBONE and goes to the port itself."""

import asyncio
import ssl
from contextlib import asynccontextmanager

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import ConnectionTerminated, DataReceived, RequestReceived, StreamEnded, StreamReset


class FarEnd:
    """Listens on 127.0.0.1 at `port`; what it saw and how it behaves are its attributes."""

    def __init__(self):
        self.port = 0
        self.handshakes = 0  # that were begun
        self.peers = []  # SPIFFE ids, one a connection
        self.authorities = []  # of every CONNECT
        self.answers = {}  # authority → status instead of a tunnel
        self.mute = False  # reads and says nothing more
        self.hang_up_on = ""  # the authority of a CONNECT, once
        self.connections = set()
        self.server = None

    async def listen(self, certificate, key, ca, *, alpn=("h2",)):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        context.load_verify_locations(ca)
        context.verify_mode = ssl.CERT_REQUIRED
        context.set_alpn_protocols(list(alpn))
        context.sni_callback = self._on_hello
        self.server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, ssl=context)
        self.port = self.server.sockets[0].getsockname()[1]

    def goodbye(self):
        """GOAWAY to everybody; the connections close when the clients do."""
        for connection in self.connections:
            connection.h2.close_connection()
            connection.flush()

    def vanish(self):
        """Every connection is cut, and nobody listens."""
        self.server.close()
        for connection in list(self.connections):
            connection.writer.transport.abort()

    def _on_hello(self, *_):
        self.handshakes += 1

    async def _serve(self, reader, writer):
        connection = _Connection(self, writer)
        self.connections.add(connection)
        names = writer.get_extra_info("peercert")["subjectAltName"]
        self.peers += [value for kind, value in names if kind == "URI"]
        try:
            while data := await reader.read(65_536):
                if not self.mute:
                    connection.receive(data)
        except (ConnectionError, ssl.SSLError):
            pass
        finally:
            self.connections.discard(connection)
            connection.close()


class _Connection:
    def __init__(self, far, writer):
        self.far = far
        self.writer = writer
        self.h2 = H2Connection(H2Configuration(client_side=False, header_encoding="utf-8"))
        self.h2.initiate_connection()
        self.tunnels = {}  # stream → queue of bytes towards the server behind
        self.tasks = set()
        self.flush()

    def flush(self):
        if not self.far.mute:
            self.writer.write(self.h2.data_to_send())

    def receive(self, data):
        for event in self.h2.receive_data(data):
            match event:
                case RequestReceived(headers=headers) if (
                    self.far.hang_up_on == dict(headers)[":authority"]
                ):
                    self.far.hang_up_on = ""
                    self.writer.transport.abort()
                case RequestReceived(stream_id=stream, headers=headers):
                    self.tunnels[stream] = asyncio.Queue()
                    task = asyncio.create_task(self.tunnel(stream, dict(headers)[":authority"]))
                    self.tasks.add(task)
                    task.add_done_callback(self.tasks.discard)
                case DataReceived(stream_id=stream, data=chunk):
                    self.h2.acknowledge_received_data(event.flow_controlled_length, stream)
                    self.tunnels[stream].put_nowait(chunk)
                case StreamEnded(stream_id=stream) | StreamReset(stream_id=stream):
                    self.tunnels[stream].put_nowait(None)
                case ConnectionTerminated():
                    self.close()
        self.flush()

    async def tunnel(self, stream, authority):
        self.far.authorities.append(authority)
        status, writer = self.far.answers.get(authority, 200), None
        if status == 200:
            try:
                host, _, port = authority.rpartition(":")
                reader, writer = await asyncio.open_connection(host, int(port))
            except OSError:
                status = 503
        self.h2.send_headers(stream, [(":status", str(status))], end_stream=writer is None)
        self.flush()
        if writer is None:
            return
        async with asyncio.TaskGroup() as both:
            into = both.create_task(self.into(stream, writer))
            await self.out_of(stream, reader)
            into.cancel()

    async def into(self, stream, writer):
        try:
            while (chunk := await self.tunnels[stream].get()) is not None:
                writer.write(chunk)
        finally:
            writer.close()

    async def out_of(self, stream, reader):
        while data := await reader.read(16_384):
            if stream not in self.h2.streams or self.h2.streams[stream].closed:
                return
            while self.h2.local_flow_control_window(stream) < len(data):
                await asyncio.sleep(0.01)
            self.h2.send_data(stream, data)
            self.flush()
        self.h2.end_stream(stream)
        self.flush()

    def close(self):
        for task in self.tasks:
            task.cancel()
        self.writer.close()


@asynccontextmanager
async def far_end(*files, **options):
    """A running `FarEnd`."""
    far = FarEnd()
    await far.listen(*files, **options)
    try:
        yield far
    finally:
        far.vanish()
        await asyncio.sleep(0)
