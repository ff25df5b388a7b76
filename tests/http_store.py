"""An object store on the loopback interface, and the fsspec file system that speaks to it.

Nothing but HTTP connects the two: whoever writes to it shares no disk with who reads. `install`
makes the protocol known to every process that has a folder on its path, as a distribution does.
"""

from __future__ import annotations

import http.client
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from fsspec import AbstractFileSystem

PROTOCOL = "loopback"


class StoreServer:
    """Keeps what is put, until it is stopped.

    Attributes:
        files: Contents by name.
        puts: Name, and node that put it, of every put that was taken.
        held_node: A node whose puts of artifacts stop before their body is read.
        is_waiting: Set once one stops.
        release: Lets it go on, which is to be dropped.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.puts: list[tuple[str, str]] = []
        self.held_node: str | None = None
        self.is_waiting = threading.Event()
        self.release = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._server.daemon_threads = True
        self._server.block_on_close = False
        self._server.store = self  # type: ignore[attr-defined]
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        )
        self._thread.start()

    @property
    def url(self) -> str:
        """What `edgezoo batch --output` takes."""
        return f"{PROTOCOL}://127.0.0.1:{self._server.server_port}/zoo"

    def stop(self) -> None:
        """Ends it."""
        self.release.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    def do_PUT(self) -> None:
        store = self.server.store  # type: ignore[attr-defined]
        node = self.headers["X-Node"]
        if node == store.held_node and self.path.endswith(".tflite"):
            store.is_waiting.set()
            store.release.wait()
            self.close_connection = True
            return
        store.files[self.path] = self.rfile.read(int(self.headers["Content-Length"]))
        store.puts.append((self.path, node))
        self._answer(201, b"")

    def do_GET(self) -> None:
        content = self.server.store.files.get(self.path)  # type: ignore[attr-defined]
        self._answer(404 if content is None else 200, content or b"")

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_DELETE(self) -> None:
        found = self.server.store.files.pop(self.path, None)  # type: ignore[attr-defined]
        self._answer(404 if found is None else 204, b"")

    def _answer(self, status: int, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass


class HttpStore(AbstractFileSystem):
    """The few operations that a store needs."""

    protocol = PROTOCOL
    cachable = False

    def cat_file(self, path: str, start: Any = None, end: Any = None, **_: Any) -> bytes:
        return self._ask("GET", path)[1]

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **_: Any) -> None:
        self._ask("PUT", path, value)

    def put_file(self, lpath: str, rpath: str, callback: Any = None, **_: Any) -> None:
        self._ask("PUT", rpath, Path(lpath).read_bytes())

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        return {"name": path, "type": "file", "size": self._ask("HEAD", path)[0]}

    def rm_file(self, path: str) -> None:
        self._ask("DELETE", path)

    def _ask(self, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        host, _, name = self._strip_protocol(path).partition("/")
        connection = http.client.HTTPConnection(host)
        try:
            node = os.environ.get("STORE_NODE", "none")
            connection.request(method, f"/{name}", body, {"X-Node": node})
            answer = connection.getresponse()
            content = answer.read()
            if answer.status == 404:
                raise FileNotFoundError(path)
            return int(answer.headers["Content-Length"]), content
        finally:
            connection.close()


def install(site: Path) -> str:
    """Writes a distribution that brings the protocol; returns what PYTHONPATH must hold."""
    metadata = site / "loopback_store-1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: loopback-store\nVersion: 1.0\n"
    )
    (metadata / "entry_points.txt").write_text(
        f"[fsspec.specs]\n{PROTOCOL} = http_store:HttpStore\n"
    )
    return os.pathsep.join([str(site), str(Path(__file__).parent)])
