"""The half of the loopback hub that takes files: repos, preupload, LFS, commits, pull requests.

A mix-in of the handler in hub_server.py. Large files are put to the storage origin, as on the
public hub, and become part of a repo by a commit alone.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import yaml

if TYPE_CHECKING:
    from hub_server import HubServer, Request

#: What a new repo on the public hub holds.
FIRST = {".gitattributes": b"*.tflite filter=lfs diff=lfs merge=lfs -text\n"}


@dataclass
class Uploads:
    """What the hub knows of uploads, and how it fails.

    Attributes:
        writers: Token -> the organisations that it may write to.
        objects: Large files that were put, by sha256.
        taken: Names that something invisible has.
        chunk_size: Large files are put in parts of so many bytes, if it is set.
        put_answers: Statuses of the next puts; 0 closes the connection without an answer.
        commit_answers: Statuses of the next commits.
        confirms_elsewhere: Whether the hub asks to confirm an upload at the storage origin.
        leads_away: Whether questions about uploads are redirected to the storage origin.
        meanwhile: Called before a commit is taken.
    """

    writers: dict[str, set[str]] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    taken: set[str] = field(default_factory=set)
    chunk_size: int | None = None
    put_answers: list[int] = field(default_factory=list)
    commit_answers: list[int] = field(default_factory=list)
    confirms_elsewhere: bool = False
    leads_away: bool = False
    meanwhile: Any = None
    parts: dict[tuple[str, int], bytes] = field(default_factory=dict)


class TakesUploads:
    """Answers questions about uploads."""

    hub: HubServer
    #: The exception that becomes an answer: status, code, message.
    refused: type[Exception]

    def takes_upload(
        self, request: Request, path: str, query: Mapping[str, list[str]], body: bytes
    ) -> bool:
        """Answers, and returns True, if the request is about an upload."""
        if path.startswith("/puts/"):
            self._put(path.removeprefix("/puts/"), int(query.get("part", ["0"])[0]), body)
        elif path.startswith("/confirms/"):
            self._send_json({})
        elif path.startswith("/completes/"):
            self._complete(path.removeprefix("/completes/"), json.loads(body))
        elif path == "/api/whoami-v2":
            self._check_token(request, "api")
            self._refuse_unless(request.token, HTTPStatus.UNAUTHORIZED, "Invalid username or token")
            orgs = self.hub.uploads.writers.get(str(request.token), set())
            role = "write" if orgs else "read"
            token = {"accessToken": {"displayName": "mine", "role": role}}
            self._send_json({"type": "user", "name": "mira", "orgs": [], "auth": token})
        elif path == "/api/validate-yaml":
            front_matter = json.loads(body)["content"].split("---\n")[1]
            assert isinstance(yaml.safe_load(front_matter), dict)
            self._send_json({"errors": [], "warnings": []})
        elif path == "/api/repos/create":
            self._create(request, json.loads(body))
        elif path.endswith(".git/info/lfs/objects/batch"):
            self._batch(request, path[1:].removesuffix(".git/info/lfs/objects/batch"), body)
        elif path.startswith("/api/models/") and path.split("/")[5:6] == ["preupload"]:
            self._preupload(request, path, json.loads(body))
        elif path.startswith("/api/models/") and path.split("/")[5:6] == ["commit"]:
            self._commit(request, path, body, is_proposal="create_pr" in query)
        else:
            return False
        return True

    def _refuse_unless(
        self, holds: object, status: HTTPStatus, message: str, code: str | None = None
    ) -> None:
        if not holds:
            raise self.refused(status, code, message)

    def _check_writer(self, request: Request, org: str, *, is_proposal: bool = False) -> None:
        self._check_token(request, "api")
        self._refuse_unless(request.token, HTTPStatus.UNAUTHORIZED, "Invalid username or password.")
        may = org in self.hub.uploads.writers.get(str(request.token), set())
        message = f'You don\'t have the rights to create a model under the namespace "{org}"'
        self._refuse_unless(may or is_proposal, HTTPStatus.FORBIDDEN, message)

    def _create(self, request: Request, asked: Mapping[str, Any]) -> None:
        repo = f"{asked['organization']}/{asked['name']}"
        self._check_writer(request, asked["organization"])
        is_taken = repo in self.hub.repos or repo in self.hub.uploads.taken
        message = "You already created this model repo"
        self._refuse_unless(not is_taken, HTTPStatus.CONFLICT, message)
        self.hub.publish(repo, FIRST)
        self._send_json({"url": f"{self.hub.url}/{repo}", "name": repo})

    def _preupload(self, request: Request, path: str, asked: Mapping[str, Any]) -> None:
        repo, revision = "/".join(path.split("/")[3:5]), unquote(path.split("/")[6])
        _, _, files = self._find(repo, revision)
        answer = []
        for file in asked["files"]:
            is_large = file["path"].endswith((".tflite", ".litertlm")) or file["size"] > 10 << 20
            there = files.get(file["path"])
            answer.append(
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if is_large else "regular",
                    "shouldIgnore": False,
                    **({"oid": there.etag} if there else {}),
                }
            )
        self._send_json({"files": answer})

    def _batch(self, request: Request, repo: str, body: bytes) -> None:
        uploads = self.hub.uploads
        if uploads.leads_away:
            target = f"{self.hub.storage_url}{request.path}"
            if not request.host.startswith("localhost"):
                headers = {"Location": target}
                self._send_headers(HTTPStatus.TEMPORARY_REDIRECT, headers, 0)
                return
        else:
            self._check_writer(request, repo.split("/")[0], is_proposal=True)
        answers = []
        for wanted in json.loads(body)["objects"]:
            oid = wanted["oid"]
            answer = {"oid": oid, "size": wanted["size"]}
            if oid not in uploads.objects:
                answer["actions"] = self._actions(oid, wanted["size"])
            answers.append(answer)
        self._send_json({"transfer": "basic", "objects": answers})

    def _actions(self, oid: str, size: int) -> dict[str, Any]:
        chunk = self.hub.uploads.chunk_size
        storage = f"{self.hub.storage_url}/puts/{oid}"
        upload: dict[str, Any] = {"href": f"{storage}?X-Signature=signed-for-one-hour"}
        if chunk:
            count = -(-size // chunk)
            parts = {str(n + 1): f"{storage}?part={n + 1}" for n in range(count)}
            header = {"chunk_size": str(chunk), **parts}
            upload = {"href": f"{self.hub.url}/completes/{oid}", "header": header}
        elsewhere = self.hub.uploads.confirms_elsewhere
        base = self.hub.storage_url if elsewhere else self.hub.url
        return {"upload": upload, "verify": {"href": f"{base}/confirms/{oid}"}}

    def _put(self, oid: str, part: int, body: bytes) -> None:
        uploads = self.hub.uploads
        status = uploads.put_answers.pop(0) if uploads.put_answers else 200
        if status == 0:
            self.close_connection = True
            return
        self._refuse_unless(status == 200, HTTPStatus(status), "out of order")
        if part:
            uploads.parts[oid, part] = body
            self._send_headers(HTTPStatus.OK, {"ETag": f'"{part}"'}, 0)
            return
        self._keep(oid, body)
        self._send_headers(HTTPStatus.OK, {}, 0)

    def _complete(self, oid: str, asked: Mapping[str, Any]) -> None:
        numbers = [part["partNumber"] for part in asked["parts"]]
        self._keep(oid, b"".join(self.hub.uploads.parts.pop((oid, n)) for n in numbers))
        self._send_json({})

    def _keep(self, oid: str, content: bytes) -> None:
        matches = hashlib.sha256(content).hexdigest() == oid
        self._refuse_unless(matches, HTTPStatus.BAD_REQUEST, "sha256 differs")
        self.hub.uploads.objects[oid] = content

    def _commit(self, request: Request, path: str, body: bytes, *, is_proposal: bool) -> None:
        repo, branch = "/".join(path.split("/")[3:5]), unquote(path.split("/")[6])
        uploads = self.hub.uploads
        self._check_writer(request, repo.split("/")[0], is_proposal=is_proposal)
        status = uploads.commit_answers.pop(0) if uploads.commit_answers else 200
        self._refuse_unless(status == 200, HTTPStatus(status), "out of order")
        if uploads.meanwhile:
            uploads.meanwhile()
        entry, head, files = self._find(repo, branch)
        contents = {name: file.content for name, file in files.items()}
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                message = "A commit has happened since. Please refresh and try again."
                same = value.get("parentCommit", head) == head
                self._refuse_unless(same, HTTPStatus.PRECONDITION_FAILED, message)
            elif line["key"] == "file":
                contents[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                contents[value["path"]] = uploads.objects[value["oid"]]
        number = 1 + sum(name.startswith("refs/pr/") for name in entry.branches)
        branch = f"refs/pr/{number}" if is_proposal else branch
        commit = self.hub.publish(
            repo, contents, branch=branch, is_gated=entry.is_gated, card=entry.card
        )
        answer = {"commitUrl": f"{self.hub.url}/{repo}/commit/{commit}", "commitOid": commit}
        if is_proposal:
            answer["pullRequestUrl"] = f"{self.hub.url}/{repo}/discussions/{number}"
        self._send_json(answer)
