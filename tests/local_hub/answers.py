"""What the servers answer: paths of the Hub's HTTP interface to files, listings and refusals."""

from __future__ import annotations

import contextlib
import json
import re
import time
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

from .faults import Fault, LoggedRequest
from .repositories import LARGE_BYTES, LARGE_SUFFIXES, Commit, StoredFile, read_card_data

if TYPE_CHECKING:
    from pathlib import Path

    from .server import LocalHub

NAME = r"(?P<name>[^/]+(?:/[^/]+)?)"
API = re.compile(
    rf"/api/(?P<kind>models|datasets)/{NAME}"
    r"(?:/(?P<part>revision|tree|paths-info|preupload|commit|commits|refs|branch|tag|settings)(?:/(?P<rest>.*))?)?"
)
PARTS = {
    "revision",
    "tree",
    "paths-info",
    "preupload",
    "commit",
    "commits",
    "refs",
    "branch",
    "tag",
    "settings",
}
RESOLVE = re.compile(rf"/(?P<kind>datasets/)?{NAME}/resolve/(?P<revision>[^/]+)/(?P<path>.+)")
LFS = re.compile(rf"/(?P<kind>datasets/)?{NAME}\.git/info/lfs/objects/batch")
RANGE = re.compile(r"bytes=(\d*)-(\d*)")
BLOCK = 1 << 16
TIME = "2024-01-01T00:00:00.000Z"  # of every commit


class Refusal(Exception):
    """An answer that ends a request, with the headers by which clients tell its reason."""

    def __init__(self, status: int, message: str, code: str = "", **headers: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message
        self.headers = {"X-Error-Message": message, **headers} | ({"X-Error-Code": code} if code else {})


class Handler(BaseHTTPRequestHandler):
    """One request; ``hub`` and ``host`` are set in a subclass for each server."""

    hub: LocalHub
    host: str
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None: ...

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):  # clients leave when they like
            super().handle()

    def answer(self) -> None:
        """Answer a request, or do what a fault says."""
        address = urlsplit(self.path)
        self.route, self.query = unquote(address.path), parse_qs(address.query)
        self.raw_route = address.path
        self.body = (
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.headers.get("Transfer-Encoding") != "chunked"
            else self.read_chunks()
        )
        self.fault = self.hub.faults.take(f"{self.command} {self.path}")
        self.user = ""
        if self.fault is not None and self.fault.delay:
            time.sleep(self.fault.delay)
        if self.fault is not None and self.fault.status is not None:
            self.send_content(self.fault.status, b'{"error": "as the test wants"}', {**self.fault.headers})
            return
        try:
            if self.host == "cdn":
                self.answer_cdn()
            else:
                self.user = self.identify_user()
                self.answer_hub()
        except Refusal as refusal:
            content = json.dumps({"error": refusal.message}).encode()
            self.send_content(
                refusal.status, content, {"Content-Type": "application/json", **refusal.headers}
            )

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = answer

    def read_chunks(self) -> bytes:
        """Read a body of unknown length."""
        content = b""
        while size := int(self.rfile.readline().partition(b";")[0], 16):
            content += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return content

    def identify_user(self) -> str:
        """Return whose token a request carries; empty: none.

        Raises:
            Refusal: for a token that nobody has.
        """
        header = self.headers.get("Authorization", "")
        token = header.removeprefix("Bearer ").strip()
        if not token:
            return ""
        if token not in self.hub.tokens:
            raise Refusal(401, "Invalid credentials in Authorization header")
        return self.hub.tokens[token]

    # sending

    def send_content(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        """Send an answer whose body is at hand."""
        fault: Fault | None = self.fault
        cut = fault.cut_after if fault is not None else None
        part = content if cut is None else content[:cut]
        if self.command == "HEAD":
            part = b""
        self.hub_log(status, len(part))  # before the client has anything to go on with
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        for start in range(0, len(part), BLOCK):
            self.wfile.write(part[start : start + BLOCK])
        if cut is not None and cut < len(content) and self.command != "HEAD":
            self.wfile.flush()
            self.close_connection = True

    def hub_log(self, status: int, sent: int) -> None:
        self.hub.log(LoggedRequest(self.host, self.command, self.path, status, sent, self.user))

    def send_json(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        headers = {"Content-Type": "application/json; charset=utf-8", **(headers or {})}
        self.send_content(status, json.dumps(value).encode(), headers)

    def send_file(self, place: Path, headers: dict[str, str]) -> None:
        """Send a file, or the part of it that the request names."""
        total = place.stat().st_size
        headers = {"Accept-Ranges": "bytes", "Content-Type": "application/octet-stream", **headers}
        wanted = RANGE.fullmatch(self.headers.get("Range", ""))
        stale = self.headers.get("If-Range") not in (None, headers.get("ETag"))
        if wanted is None or stale or wanted[1] == wanted[2] == "":
            first, last = 0, total - 1
        elif wanted[1] == "":
            first, last = max(0, total - int(wanted[2])), total - 1
        else:
            first, last = int(wanted[1]), min(int(wanted[2] or total - 1), total - 1)
        if wanted is not None and not stale and first >= total:
            self.send_content(416, b"", {**headers, "Content-Range": f"bytes */{total}"})
            return
        part = wanted is not None and not stale
        if part:
            headers["Content-Range"] = f"bytes {first}-{last}/{total}"
        if self.command == "HEAD":
            self.hub_log(206 if part else 200, 0)
            self.send_response(206 if part else 200)
            for name, value in {"Content-Length": str(last - first + 1), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            return
        with place.open("rb") as file:
            file.seek(first)
            self.send_content(206 if part else 200, file.read(last - first + 1), headers)

    # the host of large files

    def answer_cdn(self) -> None:
        """Send a large file, or store one that is uploaded.

        Raises:
            Refusal: for a request with a token, which belongs to the Hub alone; for a file that is not there.
        """
        if self.headers.get("Authorization"):
            raise Refusal(400, "Only one auth mechanism allowed")
        oid = self.route.rpartition("/")[2]
        if self.command == "PUT":
            self.hub.uploads[oid] = self.body
            self.send_content(200, b"", {"ETag": f'"{oid}"'})
            return
        place = self.hub.repositories.hashes.by_sha256.get(oid)
        if place is None or not place.is_file():
            raise Refusal(404, "NoSuchKey")
        self.send_file(place, {"ETag": f'"{oid}"'})

    # the Hub

    def answer_hub(self) -> None:
        """Find out what a path means.

        Raises:
            Refusal: for what is not there or not allowed.
        """
        if self.headers.get("Host", "").startswith("datasets-server."):
            raise Refusal(404, "The dataset viewer doesn't exist on this machine")
        if self.route == "/api/whoami-v2":
            self.answer_whoami()
        elif self.route == "/api/repos/create":
            self.create_repository()
        elif self.route == "/api/validate-yaml":
            self.send_json({"errors": [], "warnings": []})
        elif self.route in ("/api/models", "/api/datasets"):
            kind = self.route.rpartition("/")[2]
            names = self.hub.repositories.list_names(kind)
            seen = [n for n in names if self.hub.is_visible(f"{kind}/{n}", self.user)]
            self.send_json([{"_id": n, "id": n, "modelId": n, "private": False} for n in seen])
        elif matched := RESOLVE.fullmatch(self.raw_route):
            kind = "datasets" if matched["kind"] else "models"
            self.resolve_file(kind, matched["name"], unquote(matched["revision"]), unquote(matched["path"]))
        elif matched := LFS.fullmatch(self.route):
            self.require_user()
            self.answer_lfs_batch()
        elif matched := API.fullmatch(self.raw_route):
            name, part, rest = matched["name"], matched["part"], unquote(matched["rest"] or "")
            owner, _, second = name.partition("/")
            if part is None and second in PARTS:
                name, part = owner, second
            self.answer_api(matched["kind"], name, part or "revision", rest)
        else:
            raise Refusal(404, f"Cannot {self.command} {self.route}")

    def require_user(self) -> None:
        if not self.user:
            raise Refusal(401, "Invalid username or password.")

    def answer_whoami(self) -> None:
        self.require_user()
        auth = {"type": "access_token", "accessToken": {"displayName": "test", "role": "write"}}
        self.send_json(
            {
                "type": "user",
                "id": self.user,
                "name": self.user,
                "fullname": self.user,
                "orgs": [],
                "auth": auth,
            }
        )

    def find_repository(self, kind: str, name: str) -> Path:
        """Return the folder of a repository that the user may see.

        Raises:
            Refusal: the same whether there is none or it is hidden; clients without a token are told to log in.
        """
        place = self.hub.repositories.find(kind, name)
        if place is None or not self.hub.is_visible(f"{kind}/{name}", self.user):
            raise Refusal(404 if self.user else 401, "Repository not found", "RepoNotFound")
        return place

    def find_commit(self, place: Path, revision: str) -> Commit:
        commit = self.hub.repositories.find_commit(place, revision or "main")
        if commit is None:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit

    def resolve_file(self, kind: str, name: str, revision: str, path: str) -> None:
        """Send a file, or where a large one lies.

        Raises:
            Refusal: for a gated repository, and a file that is not there.
        """
        place = self.find_repository(kind, name)
        if not self.hub.is_readable(f"{kind}/{name}", self.user):
            if not self.user:
                text = f"Access to {kind[:-1]} {name} is restricted. You must have access to it and be authenticated."
                raise Refusal(401, text, "GatedRepo")
            text = f"Access to {kind[:-1]} {name} is restricted and you are not in the authorized list."
            raise Refusal(403, text, "GatedRepo")
        commit = self.find_commit(place, revision)
        file = commit.files.get(path)
        headers = {"X-Repo-Commit": commit.sha}
        if file is None:
            raise Refusal(404, "Entry not found", "EntryNotFound", **headers)
        headers["ETag"] = f'"{file.etag}"'
        if file.sha256 is None:
            self.send_file(file.place, headers)
            return
        location = f"{self.hub.cdn}/{kind}/{quote(name)}/{file.sha256}"
        linked = {"X-Linked-Size": str(file.size), "X-Linked-ETag": headers["ETag"]}
        self.send_content(302, b"", {**headers, **linked, "Location": location, "Accept-Ranges": "bytes"})

    def answer_api(self, kind: str, name: str, part: str, rest: str) -> None:
        """Answer about one repository."""
        place = self.find_repository(kind, name)
        match part:
            case "revision":
                self.send_json(self.describe_repository(kind, name, self.find_commit(place, rest)))
            case "tree":
                self.send_tree(place, rest)
            case "paths-info":
                commit = self.find_commit(place, rest)
                paths = parse_qs(self.body.decode()).get("paths", [])
                self.send_json([entry for path in paths if (entry := commit.describe_path(path)) is not None])
            case "refs":
                self.send_json(self.list_refs(place))
            case "commits":
                sha = self.find_commit(place, rest).sha
                self.send_json(
                    [
                        {
                            "id": sha,
                            "title": "commit",
                            "message": "",
                            "authors": [],
                            "date": TIME,
                        }
                    ]
                )
            case "branch" | "tag":
                self.require_user()
                start = json.loads(self.body or b"{}").get("startingPoint", "main")
                revisions = self.hub.repositories.list_revisions(place)
                name_of_tag = json.loads(self.body or b"{}").get("tag")
                source = revisions.get(rest if part == "tag" else start, place)
                self.hub.repositories.create_revision(place, name_of_tag or rest, source)
                self.send_json({})
            case "preupload":
                self.require_user()
                files = [self.choose_upload(place, file) for file in json.loads(self.body)["files"]]
                self.send_json({"files": files})
            case "commit":
                self.require_user()
                revisions = self.hub.repositories.list_revisions(place)
                if (rest or "main") not in revisions:
                    raise Refusal(404, f"Invalid rev id: {rest}", "RevisionNotFound")
                self.hub.store_commit(revisions[rest or "main"], self.body.splitlines())
                sha = self.find_commit(place, rest).sha
                prefix = "" if kind == "models" else "datasets/"
                url = f"{self.hub.endpoint}/{prefix}{name}/commit/{sha}"
                self.send_json({"success": True, "commitOid": sha, "commitUrl": url, "hookOutput": ""})
            case _:
                self.send_json({})

    def describe_repository(self, kind: str, name: str, commit: Commit) -> dict[str, Any]:
        blobs = self.query.get("blobs", ["false"])[0].lower() == "true"
        repository = f"{kind}/{name}"
        facts: dict[str, Any] = {
            "_id": commit.sha[:24],
            "id": name,
            "author": name.partition("/")[0],
            "sha": commit.sha,
            "lastModified": TIME,
            "createdAt": TIME,
            "private": repository in self.hub.private,
            "gated": "auto" if repository in self.hub.gated else False,
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            "tags": [],
            "cardData": read_card_data(commit),
            "siblings": [file.describe_sibling(blobs) for file in commit.files.values()],
        }
        if kind == "models":
            facts["modelId"] = name
        if wanted := self.query.get("expand"):
            facts = {key: value for key, value in facts.items() if key in ("_id", "id", *wanted)}
        return facts

    def send_tree(self, place: Path, rest: str) -> None:
        """Send a page of a listing; the header ``Link`` leads to the next one."""
        revision, _, folder = self.raw_route.partition("/tree/")[2].partition("/")
        commit = self.find_commit(place, unquote(revision))
        recursive = self.query.get("recursive", ["false"])[0].lower() in ("true", "1")
        entries = commit.list_tree(unquote(folder), recursive)
        if entries is None:
            raise Refusal(404, f"{unquote(folder)} does not exist on {rest}", "EntryNotFound")
        first = int(self.query.get("cursor", ["0"])[0])
        headers = {}
        if first + self.hub.page < len(entries):
            query = f"recursive={str(recursive).lower()}&cursor={first + self.hub.page}"
            headers["Link"] = f'<{self.hub.endpoint}{self.raw_route}?{query}>; rel="next"'
        self.send_json(entries[first : first + self.hub.page], headers=headers)

    def list_refs(self, place: Path) -> dict[str, list[dict[str, str]]]:
        refs: dict[str, list[dict[str, str]]] = {"branches": [], "converts": [], "tags": []}
        for name, folder in self.hub.repositories.list_revisions(place).items():
            sha = self.hub.repositories.read_commit(folder).sha
            list_name = "converts" if name.startswith("refs/convert/") else "branches"
            ref = name if name.startswith("refs/") else f"refs/heads/{name}"
            refs[list_name].append(
                {"name": name.removeprefix("refs/convert/"), "ref": ref, "targetCommit": sha}
            )
        return refs

    # uploads

    def create_repository(self) -> None:
        self.require_user()
        wanted = json.loads(self.body)
        kind = f"{wanted.get('type') or 'model'}s"
        name = f"{wanted.get('organization') or self.user}/{wanted['name']}"
        url = f"{self.hub.endpoint}/{'datasets/' if kind == 'datasets' else ''}{name}"
        if self.hub.repositories.find(kind, name) is not None:
            self.send_json({"error": "You already created this repo", "url": url}, 409)
            return
        self.hub.repositories.create(kind, name)
        if wanted.get("private") or wanted.get("visibility") == "private":
            self.hub.private.add(f"{kind}/{name}")
        self.send_json({"url": url, "name": name, "id": name})

    def choose_upload(self, place: Path, file: dict[str, Any]) -> dict[str, Any]:
        large = file["path"].lower().endswith(LARGE_SUFFIXES) or file["size"] > LARGE_BYTES
        known: StoredFile | None = self.find_commit(place, "main").files.get(file["path"])
        answer = {"path": file["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}
        return answer | ({"oid": known.etag} if known else {})

    def answer_lfs_batch(self) -> None:
        objects = []
        for wanted in json.loads(self.body)["objects"]:
            entry = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in self.hub.uploads:
                entry["actions"] = {"upload": {"href": f"{self.hub.cdn}/upload/{wanted['oid']}"}}
            objects.append(entry)
        self.send_json({"transfer": "basic", "objects": objects})
