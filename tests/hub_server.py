"""A Hugging Face hub on the loopback interface, for the real client to talk to.

It answers as far as huggingface_hub asks when it lists and downloads models, keeps a log of the
requests, and fails on demand. Small files come from the hub's own origin, `http://127.0.0.1`; large
ones are redirected to another origin, `http://localhost`, as the public hub redirects to a CDN.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import struct
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from hub_uploads import TakesUploads, Uploads

#: Files that the hub stores by their sha256, apart from its git repository.
LARGE_SUFFIXES = (".bin", ".ckpt", ".model", ".msgpack", ".onnx", ".pt", ".pth", ".safetensors")
LARGE_SUFFIXES += (".tflite", ".litertlm")
#: Entries per page of a tree listing.
PAGE = 50
CHUNK = 1 << 20
#: Seconds between two bytes of an answer that trickles in.
TRICKLE_S = 0.2


@dataclass(frozen=True)
class StoredFile:
    """A file of a repo: its bytes or where they are, and the name that git or LFS gives them."""

    content: bytes | Path
    is_large: bool
    size: int
    sha256: str
    git_oid: str

    @property
    def etag(self) -> str:
        return self.sha256 if self.is_large else self.git_oid

    def chunks(self, start: int, stop: int) -> Iterator[bytes]:
        if isinstance(self.content, bytes):
            yield self.content[start:stop]
            return
        with self.content.open("rb") as f:
            f.seek(start)
            while start < stop:
                chunk = f.read(min(CHUNK, stop - start))
                start += len(chunk)
                yield chunk


@dataclass
class Repo:
    """Commits by hash and branches by name; who may read it."""

    commits: dict[str, dict[str, StoredFile]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    is_gated: bool = False
    card: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Request:
    """A request as it came in. The names of its headers are in lower case."""

    method: str
    path: str
    host: str
    headers: Mapping[str, str]

    @property
    def token(self) -> str | None:
        return self.headers.get("authorization", "").removeprefix("Bearer ") or None


@dataclass(frozen=True)
class Fault:
    """What one request meets in place of an answer.

    Attributes:
        status: Of the answer; None for none: the connection is reset.
        retry_after: What the answer says of it.
        page: What comes as the answer, with status 200.
        kind: The content type of that.
        pause_s: Seconds between two bytes of a file that trickles in.
        is_stalled: Nothing comes until `HubServer.release` is set.
        trickles: The part of the answer, `head` or `body`, that comes byte by byte, without end.
        moved_to: Origin that the request is redirected to.
        after: The file begins as it should, and this happens behind so many bytes of it.
    """

    status: int | None = None
    retry_after: str | None = None
    page: bytes | None = None
    kind: str = "text/html; charset=utf-8"
    pause_s: float | None = None
    is_stalled: bool = False
    trickles: str | None = None
    moved_to: str | None = None
    after: int | None = None


class HubServer:
    """Serves the repos that are published to it, until it is stopped.

    Attributes:
        requests: All requests so far.
        sent_bytes: Bytes of all bodies so far.
        tokens: Tokens that the hub knows; any other is refused.
        members: Those of them that may read gated repos.
        unavailable: Parts that answer 503: `api`, `resolve`, `storage`.
        flipped: Files of which one byte arrives wrong.
        cut_after: Bytes of a large file after which the connection is closed, each time.
        cut_once: The same, but only the first time.
        held: Large files that stop in the middle until `release` is set.
        is_waiting: Set once a held file is reached.
        faults: Part -> what its next requests meet.
        shortened: Large files that end some bytes early, as if that were all of them.
        stated_sizes: Large files that have another size by what the hub says.
        ignores_ranges: Whether large files always come from their beginning.
        has_xet: Whether large files could be had over Xet as well.
        storage_at: Origin that large files are redirected to, if not `storage_url`.
        also_listed: What every list of files holds besides, as it stands there.
        stated_commits: Part (`api`, `resolve`) -> what it says in place of a commit's hash.
        uploads: Who may write, what was put, and what fails of it.
    """

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.requests: list[Request] = []
        self.sent_bytes = 0
        self.tokens: set[str] = set()
        self.members: set[str] = set()
        self.unavailable: set[str] = set()
        self.flipped: set[str] = set()
        self.cut_after: dict[str, int] = {}
        self.cut_once: dict[str, int] = {}
        self.held: set[str] = set()
        self.uploads = Uploads()
        self.is_waiting = threading.Event()
        self.release = threading.Event()
        self.faults: dict[str, Iterator[Fault]] = {}
        self.shortened: dict[str, int] = {}
        self.stated_sizes: dict[str, int] = {}
        self.ignores_ranges = False
        self.has_xet = False
        self.storage_at: str | None = None
        self.also_listed: list[dict[str, object]] = []
        self.stated_commits: dict[str, str] = {}
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._server.daemon_threads = True
        self._server.block_on_close = False
        self._server.hub = self  # type: ignore[attr-defined]
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        )
        self._thread.start()

    @property
    def url(self) -> str:
        """The hub's own origin: what HF_ENDPOINT must say."""
        return f"http://127.0.0.1:{self._server.server_port}"

    @property
    def storage_url(self) -> str:
        """The origin that large files come from."""
        return f"http://localhost:{self._server.server_port}"

    def publish(
        self,
        repo: str,
        files: Mapping[str, bytes] | Path,
        *,
        branch: str = "main",
        is_gated: bool = False,
        card: Mapping[str, str] | None = None,
    ) -> str:
        """Adds a commit to a branch of a repo, which is made if need be; returns its hash.

        Args:
            repo: `org/name`.
            files: Contents by name, or a folder, which must stay as it is.
            branch: The branch that the commit becomes the head of.
            is_gated: Whether its files are for members only.
            card: What the front matter of its README says.
        """
        if isinstance(files, Path):
            contents: Mapping[str, bytes | Path] = {
                str(p.relative_to(files)): p for p in sorted(files.rglob("*")) if p.is_file()
            }
        else:
            contents = files
        stored = {name: _store(name, content) for name, content in contents.items()}
        entry = self.repos.setdefault(repo, Repo())
        listing = json.dumps([len(entry.commits), {n: f.etag for n, f in stored.items()}])
        commit = hashlib.sha1(listing.encode()).hexdigest()
        entry.commits[commit] = stored
        entry.branches[branch] = commit
        entry.is_gated = is_gated
        entry.card = card or {}
        return commit

    def environment(self, home: Path) -> dict[str, str]:
        """Returns the variables that make huggingface_hub ask this hub and keep to `home`."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_CACHE": str(home / "hub"),
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_UPDATE_CHECK": "1",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_OFFLINE": "0",
            "NO_PROXY": "127.0.0.1,localhost",
        }

    def fetched(self) -> list[str]:
        """Returns the names of the files whose bodies were asked for, in order."""
        names = []
        for request in self.requests:
            parts = urlsplit(request.path)
            if request.method == "GET" and parts.path.startswith("/storage/"):
                names.append(parse_qs(parts.query)["name"][0])
            elif request.method == "GET" and "/resolve/" in parts.path:
                names.append(unquote(parts.path.split("/", 5)[5]))
        return names

    def stop(self) -> None:
        """Closes the port: from now on connections are refused."""
        self.release.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _store(name: str, content: bytes | Path) -> StoredFile:
    size = len(content) if isinstance(content, bytes) else content.stat().st_size
    whole = StoredFile(content, True, size, "", "")
    sha256, git = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % size)
    for chunk in whole.chunks(0, size):
        sha256.update(chunk)
        git.update(chunk)
    is_large = name.endswith(LARGE_SUFFIXES) or size > 10 << 20
    return StoredFile(content, is_large, size, sha256.hexdigest(), git.hexdigest())


class _RefusedError(Exception):
    def __init__(self, status: HTTPStatus, code: str | None, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message


class _Handler(TakesUploads, BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    refused = _RefusedError

    @property
    def hub(self) -> HubServer:
        return self.server.hub  # type: ignore[attr-defined, no-any-return]

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def _answer(self) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        body = self._body(headers)
        request = Request(self.command, self.path, headers["host"], headers)
        self.hub.requests.append(request)
        parts = urlsplit(self.path)
        try:
            self._fault = self._next_fault(parts.path)
            if self._fault and self._fault.after is None:
                self._fail(self._fault)
            elif self.takes_upload(request, parts.path, parse_qs(parts.query), body):
                pass
            elif parts.path.startswith("/storage/"):
                self._storage(request, parts.path.split("/")[2], parse_qs(parts.query)["name"][0])
            elif parts.path.startswith("/api/models/"):
                self._check_token(request, "api")
                self._api(request, parts.path.split("/")[3:], parse_qs(parts.query), body)
            elif "/resolve/" in parts.path:
                self._check_token(request, "resolve")
                self._resolve(request, *parts.path[1:].split("/", 4))
            else:
                raise _RefusedError(HTTPStatus.NOT_FOUND, None, f"no such page: {parts.path}")
        except _RefusedError as refusal:
            self._refuse(refusal)
        except ConnectionError:
            self.close_connection = True  # the client was killed

    def _next_fault(self, path: str) -> Fault | None:
        part = path.split("/")[1]
        part = part if part in ("api", "storage") else "resolve"
        return next(self.hub.faults.get(part, iter(())), None)

    def _fail(self, fault: Fault) -> None:
        if fault.is_stalled:
            self.hub.is_waiting.set()
            self.hub.release.wait()
            self.close_connection = True
        elif fault.trickles is not None:
            self.send_response(HTTPStatus.OK)
            byte = b" "
            if fault.trickles == "body":
                self.send_header("Content-Type", "application/json")
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                byte = b"1\r\n \r\n"
            self.flush_headers()
            while not self.hub.release.wait(TRICKLE_S):
                self.wfile.write(byte)
            self.close_connection = True
        elif fault.page is not None:
            self._send_headers(HTTPStatus.OK, {"Content-Type": fault.kind}, len(fault.page))
            self._send_body([fault.page] if self.command != "HEAD" else [])
        elif fault.moved_to is not None:
            self._send_headers(HTTPStatus.FOUND, {"Location": fault.moved_to + self.path}, 0)
        elif fault.status is not None:
            after = {} if fault.retry_after is None else {"Retry-After": fault.retry_after}
            self._send_headers(HTTPStatus(fault.status), after, 0)
        else:
            linger = struct.pack("ii", 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            os.close(self.connection.detach())  # at once, and so with a reset
            self.close_connection = True

    def _body(self, headers: Mapping[str, str]) -> bytes:
        if headers.get("transfer-encoding") != "chunked":
            return self.rfile.read(int(headers.get("content-length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _check_token(self, request: Request, part: str) -> None:
        if part in self.hub.unavailable:
            raise _RefusedError(HTTPStatus.SERVICE_UNAVAILABLE, None, "out of order")
        if request.token is not None and request.token not in self.hub.tokens:
            message = "Invalid credentials in Authorization header"
            raise _RefusedError(HTTPStatus.UNAUTHORIZED, None, message)

    def _find(self, repo: str, revision: str) -> tuple[Repo, str, dict[str, StoredFile]]:
        entry = self.hub.repos.get(repo)
        if entry is None:
            raise _RefusedError(HTTPStatus.NOT_FOUND, "RepoNotFound", "Repository not found")
        revision = unquote(revision)
        commit = entry.branches.get(revision, revision)
        if commit not in entry.commits:
            message = f"Invalid rev id: {revision}"
            raise _RefusedError(HTTPStatus.NOT_FOUND, "RevisionNotFound", message)
        return entry, commit, entry.commits[commit]

    def _api(
        self, request: Request, parts: list[str], query: dict[str, list[str]], body: bytes
    ) -> None:
        repo, question = "/".join(parts[:2]), parts[2] if len(parts) > 2 else "revision"
        revision = parts[3] if len(parts) > 3 else "main"
        entry, commit, files = self._find(repo, revision)
        if question == "revision":
            siblings = [
                {"rfilename": name, **(_blob(file) if "blobs" in query else {})}
                for name, file in files.items()
            ]
            siblings += self.hub.also_listed
            self._send_json(
                {
                    "id": repo,
                    "modelId": repo,
                    "sha": self.hub.stated_commits.get("api", commit),
                    "siblings": siblings,
                    "gated": "manual" if entry.is_gated else False,
                    "cardData": dict(entry.card),
                }
            )
        elif question == "tree":
            start = int(query.get("cursor", ["0"])[0])
            folder = "/".join(parts[4:])
            entries = [_entry(n, f) for n, f in files.items() if n.startswith(folder)]
            link = {}
            if start + PAGE < len(entries):
                page = f"{self.hub.url}{urlsplit(self.path).path}?recursive=true"
                link = {"Link": f'<{page}&cursor={start + PAGE}>; rel="next"'}
            self._send_json(entries[start : start + PAGE], link)
        elif question == "paths-info":
            wanted = parse_qs(body.decode()).get("paths", [])
            self._send_json([_entry(name, files[name]) for name in wanted if name in files])
        else:
            raise _RefusedError(HTTPStatus.NOT_FOUND, None, f"no such question: {question}")

    def _resolve(
        self, request: Request, org: str, name: str, _: str, revision: str, path: str
    ) -> None:
        repo, commit, files = self._find(f"{org}/{name}", revision)
        if repo.is_gated and request.token not in self.hub.members:
            status = HTTPStatus.FORBIDDEN if request.token else HTTPStatus.UNAUTHORIZED
            raise _RefusedError(status, "GatedRepo", "Access to this model is restricted")
        file = files.get(unquote(path))
        if file is None:
            raise _RefusedError(HTTPStatus.NOT_FOUND, "EntryNotFound", "Entry not found")
        stated = self.hub.stated_commits.get("resolve", commit)
        headers = {"X-Repo-Commit": stated, "ETag": f'"{file.etag}"'}
        if file.is_large:
            query = f"name={unquote(path)}&X-Signature=signed-for-one-hour"
            headers["X-Linked-Size"] = str(self.hub.stated_sizes.get(unquote(path), file.size))
            headers["X-Linked-ETag"] = f'"{file.sha256}"'
            if self.hub.has_xet:
                headers["X-Xet-Hash"] = file.sha256[::-1]
                headers["X-Xet-Refresh-Route"] = f"{self.hub.url}/api/xet-token"
            origin = self.hub.storage_at or self.hub.storage_url
            headers["Location"] = f"{origin}/storage/{file.sha256}?{query}"
            self._send_headers(HTTPStatus.FOUND, headers, 0)
        else:
            self._send_headers(HTTPStatus.OK, headers, file.size)
            if request.method == "GET":
                body = file.chunks(0, file.size)
                is_flipped = unquote(path) in self.hub.flipped
                self._send_body(map(_flip, body) if is_flipped else body)

    def _storage(self, request: Request, sha256: str, name: str) -> None:
        if "storage" in self.hub.unavailable:
            raise _RefusedError(HTTPStatus.SERVICE_UNAVAILABLE, None, "out of order")
        file = next(
            f
            for repo in self.hub.repos.values()
            for files in repo.commits.values()
            for f in files.values()
            if f.sha256 == sha256
        )
        size = file.size - self.hub.shortened.get(name, 0)
        asked = None if self.hub.ignores_ranges else request.headers.get("range")
        start, stop = _range(asked, size)
        headers = {"ETag": f'"{sha256[:32]}"', "Accept-Ranges": "bytes"}
        status = HTTPStatus.OK
        if asked is not None:
            status = HTTPStatus.PARTIAL_CONTENT
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
        self._send_headers(status, headers, stop - start)
        if request.method != "GET":
            return
        cut = self.hub.cut_after.get(name, self.hub.cut_once.pop(name, None))
        if cut is not None:
            stop = max(start, min(stop, cut))
            self.close_connection = True
        if self._fault and self._fault.after is not None:
            stop = start + self._fault.after
            while self._fault.pause_s is not None and start < stop:
                self._send_body(file.chunks(start, start + 1))
                start += 1
                time.sleep(self._fault.pause_s)
            self._send_body(file.chunks(start, stop))
            self._fail(self._fault)
            return
        if name in self.hub.held:
            middle = (start + stop) // 2
            self._send_body(file.chunks(start, middle))
            self.hub.is_waiting.set()
            self.hub.release.wait()
            start = middle
        body = file.chunks(start, stop)
        self._send_body(map(_flip, body) if name in self.hub.flipped else body)

    def _refuse(self, refusal: _RefusedError) -> None:
        headers = {"X-Error-Message": refusal.message}
        if refusal.code:
            headers["X-Error-Code"] = refusal.code
        self._send_json({"error": refusal.message}, headers, refusal.status)

    def _send_json(
        self,
        value: object,
        headers: Mapping[str, str] | None = None,
        status: HTTPStatus = HTTPStatus.OK,
    ) -> None:
        body = json.dumps(value).encode()
        headers = {"Content-Type": "application/json", **(headers or {})}
        self._send_headers(status, headers, len(body))
        if self.command != "HEAD":
            self._send_body([body])

    def _send_headers(self, status: HTTPStatus, headers: Mapping[str, str], length: int) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(length))
        self.end_headers()

    def _send_body(self, chunks: Iterator[bytes] | list[bytes]) -> None:
        for chunk in chunks:
            self.hub.sent_bytes += len(chunk)
            self.wfile.write(chunk)
        self.wfile.flush()


def _blob(file: StoredFile) -> dict[str, object]:
    pointer = {"sha256": file.sha256, "size": file.size, "pointerSize": 130}
    return {
        "size": file.size,
        "blobId": file.git_oid,
        **({"lfs": pointer} if file.is_large else {}),
    }


def _entry(name: str, file: StoredFile) -> dict[str, object]:
    pointer = {"oid": file.sha256, "size": file.size, "pointerSize": 130}
    return {
        "type": "file",
        "path": name,
        "oid": file.git_oid,
        "size": file.size,
        **({"lfs": pointer} if file.is_large else {}),
    }


def _range(header: str | None, size: int) -> tuple[int, int]:
    if header is None:
        return 0, size
    first, _, last = header.removeprefix("bytes=").partition("-")
    return int(first), min(int(last) + 1, size) if last else size


def _flip(chunk: bytes) -> bytes:
    return chunk[:-1] + bytes([chunk[-1] ^ 1]) if chunk else chunk
