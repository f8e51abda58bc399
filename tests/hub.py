"""A local server that answers like the Hugging Face Hub and serves a folder as the dataset roneneldan/TinyStories."""

import hashlib
import json
import re
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

REPOSITORY = "roneneldan/TinyStories"
README = b"---\nlicense: cdla-sharing-1.0\n---\nTinyStories\n"


class Hub(ThreadingHTTPServer):
    """`requests` lists the requests. `commit` is a hash of the folder's contents, as on the real Hub."""

    daemon_threads = True

    def __init__(self, folder: Path):
        super().__init__(("127.0.0.1", 0), Handler)
        files = (file for file in sorted(folder.rglob("*")) if file.is_file())
        self.files = {"README.md": README, **{f.relative_to(folder).as_posix(): f.read_bytes() for f in files}}
        self.commit = hashlib.sha1(repr(sorted(self.files.items())).encode()).hexdigest()
        self.requests: list[str] = []

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        self.server.requests.append(f"{self.command} {path}")
        commit, files = self.server.commit, self.server.files
        revision = f"(?:main|{commit})"
        if re.fullmatch(f"/api/datasets/{REPOSITORY}(/revision/{revision})?", path):
            siblings = [{"rfilename": name} for name in files]
            self.send_json({"id": REPOSITORY, "sha": commit, "private": False, "tags": [], "siblings": siblings})
        elif tree := re.fullmatch(f"/api/datasets/{REPOSITORY}/tree/{revision}/?(.*)", path):
            self.send_tree(tree[1])
        elif (file := re.fullmatch(f"/datasets/{REPOSITORY}/resolve/{revision}/(.+)", path)) and file[1] in files:
            self.send_file(files[file[1]])
        else:
            known = path.startswith((f"/datasets/{REPOSITORY}/", f"/api/datasets/{REPOSITORY}/"))
            self.send(404, b"", {"X-Error-Code": "EntryNotFound" if known else "RepoNotFound"})

    do_HEAD = do_GET

    def send_tree(self, folder: str) -> None:
        inside = {name: data for name, data in self.server.files.items() if name.startswith(folder)}
        entries = [{"type": "directory", "path": "data", "oid": "0" * 40, "size": 0}] if not folder else []
        for name, data in inside.items():
            size = {"size": len(data)}
            lfs = {"oid": hashlib.sha256(data).hexdigest(), "pointerSize": 130, **size}
            entries.append({"type": "file", "path": name, "oid": hashlib.sha1(data).hexdigest(), "lfs": lfs, **size})
        if inside:
            self.send_json(entries)
        else:
            self.send(404, b"", {"X-Error-Code": "EntryNotFound"})

    def send_file(self, data: bytes) -> None:
        headers = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "Accept-Ranges": "bytes"}
        span = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if span is None:
            self.send(200, data, headers)
        else:
            first, last = int(span[1]), min(int(span[2] or len(data) - 1), len(data) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
            self.send(206, data[first : last + 1], headers)

    def send_json(self, value: object) -> None:
        self.send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "X-Repo-Commit": self.server.commit, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass
