"""Local servers: one that gives fixed answers, and one like the Hugging Face Hub for a folder as a dataset."""

import hashlib
import json
import re
from collections.abc import Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote, urlsplit

REPOSITORY = "roneneldan/TinyStories"
README = b"---\nlicense: cdla-sharing-1.0\n---\nTinyStories\n"
JSON, NOT_FOUND = {"Content-Type": "application/json"}, (404, b"", {"X-Error-Code": "EntryNotFound"})
Found = tuple[int, bytes, dict[str, str]]  # status, body and headers


class Server(ThreadingHTTPServer):
    """Serves inside `with`, and lists the requests. `parts` of a body may come slowly."""

    def __init__(self, status: int = 200, parts: Iterable[bytes] = (b"<html></html>",)):
        super().__init__(("127.0.0.1", 0), Handler)
        self.fixed, self.requests = (status, {}, parts), []
        self.endpoint = f"http://127.0.0.1:{self.server_port}"

    def answer(self, path: str, span: str) -> tuple[int, dict[str, str], Iterable[bytes]]:
        return self.fixed

    def __enter__(self):
        Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}).start()
        return self

    def __exit__(self, *_: object):
        self.shutdown()
        self.server_close()


class Hub(Server):
    """A dataset with the files of a folder. `commit` is a hash of them, as on the real Hub.

    `gated`: its files are refused, as for somebody who has not accepted the terms.
    `broken`: names of files that are answered with HTTP 500.
    """

    def __init__(self, folder: Path, repository: str = REPOSITORY, *, gated: bool = False):
        super().__init__()
        files = (file for file in sorted(folder.rglob("*")) if file.is_file())
        self.files = {"README.md": README, **{f.relative_to(folder).as_posix(): f.read_bytes() for f in files}}
        self.commit = hashlib.sha1(repr(sorted(self.files.items())).encode()).hexdigest()
        self.repository, self.gated, self.broken = repository, gated, set()

    def answer(self, path: str, span: str) -> tuple[int, dict[str, str], Iterable[bytes]]:
        status, body, headers = self.find(path, span)
        return status, {**headers, "X-Repo-Commit": self.commit, "Content-Length": str(len(body))}, [body]

    def find(self, path: str, span: str) -> Found:
        path, _, query = path.partition("?")
        revision = f"(?:main|{self.commit})"
        if path.startswith("/api/datasets/") and not path.startswith(f"/api/datasets/{self.repository}"):
            return 401, b"", {"X-Error-Code": "RepoNotFound"}
        if re.fullmatch(f"/api/datasets/{self.repository}(/revision/{revision})?", path):
            siblings = [{"rfilename": name} for name in self.files]
            info = {"id": self.repository, "sha": self.commit, "private": False, "tags": [], "siblings": siblings}
            return 200, json.dumps(info).encode(), JSON
        if path.startswith(f"/api/datasets/{self.repository}/revision/"):
            return 404, b"", {"X-Error-Code": "RevisionNotFound"}
        if tree := re.fullmatch(f"/api/datasets/{self.repository}/tree/{revision}/?(.*)", path):
            return self.tree(tree[1], recursive="recursive=true" in query.lower())
        file = re.fullmatch(f"/datasets/{self.repository}/resolve/{revision}/(.+)", path)
        if not file or file[1] not in self.files:
            return NOT_FOUND
        if self.gated and file[1] != "README.md":
            return 403, b"", {"X-Error-Code": "GatedRepo"}
        return (500, b"", {}) if file[1] in self.broken else part(self.files[file[1]], span)

    def tree(self, folder: str, recursive: bool) -> Found:
        below = {name: data for name, data in self.files.items() if not folder or name.startswith(f"{folder}/")}
        depth = folder.count("/") + 1 if folder else 0
        parents = ["/".join(name.split("/")[:end]) for name in below for end in range(depth + 1, name.count("/") + 1)]
        entries = [{"type": "directory", "path": name, "oid": "0" * 40, "size": 0} for name in dict.fromkeys(parents)]
        for name, data in below.items():
            lfs = {"oid": hashlib.sha256(data).hexdigest(), "pointerSize": 130, "size": len(data)}
            entry = {"type": "file", "path": name, "oid": hashlib.sha1(data).hexdigest(), "size": len(data)}
            entries.append({**entry, "lfs": lfs})
        entries = [entry for entry in entries if recursive or entry["path"].count("/") == depth]
        return (200, json.dumps(entries).encode(), JSON) if entries else NOT_FOUND


class Hubs(Server):
    """Several datasets, from folders FOLDER/OWNER/NAME."""

    def __init__(self, folder: Path, gated: str = ""):
        super().__init__()
        names = [path.relative_to(folder).as_posix() for path in sorted(folder.glob("*/*"))]
        self.hubs = {name: Hub(folder / name, name, gated=name == gated) for name in names}
        for hub in self.hubs.values():
            hub.server_close()  # this one answers for all

    def answer(self, path: str, span: str) -> tuple[int, dict[str, str], Iterable[bytes]]:
        known = [hub for name, hub in self.hubs.items() if f"/{name}/" in f"{path}/"]
        return [*known, *self.hubs.values()][0].answer(path, span)


def part(data: bytes, span: str) -> Found:
    headers = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "Accept-Ranges": "bytes"}
    if not (asked := re.fullmatch(r"bytes=(\d+)-(\d*)", span)):
        return 200, data, headers
    first, last = int(asked[1]), min(int(asked[2] or len(data) - 1), len(data) - 1)
    return 206, data[first : last + 1], {**headers, "Content-Range": f"bytes {first}-{last}/{len(data)}"}


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.requests.append(f"{self.command} {urlsplit(self.path).path}")
        status, headers, parts = self.server.answer(unquote(self.path), self.headers.get("Range", ""))
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.writelines(parts if self.command == "GET" else ())

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        pass
