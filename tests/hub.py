"""Local servers: one that gives fixed answers, and one like the Hugging Face Hub for a folder as TinyStories."""

import hashlib
import json
import re
from collections.abc import Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import urlsplit

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
    """`commit` is a hash of the folder's contents, as on the real Hub."""

    def __init__(self, folder: Path):
        super().__init__()
        files = (file for file in sorted(folder.rglob("*")) if file.is_file())
        self.files = {"README.md": README, **{f.relative_to(folder).as_posix(): f.read_bytes() for f in files}}
        self.commit = hashlib.sha1(repr(sorted(self.files.items())).encode()).hexdigest()

    def answer(self, path: str, span: str) -> tuple[int, dict[str, str], Iterable[bytes]]:
        status, body, headers = self.find(path, span)
        return status, {**headers, "X-Repo-Commit": self.commit, "Content-Length": str(len(body))}, [body]

    def find(self, path: str, span: str) -> Found:
        revision = f"(?:main|{self.commit})"
        if re.fullmatch(f"/api/datasets/{REPOSITORY}(/revision/{revision})?", path):
            siblings = [{"rfilename": name} for name in self.files]
            info = {"id": REPOSITORY, "sha": self.commit, "private": False, "tags": [], "siblings": siblings}
            return 200, json.dumps(info).encode(), JSON
        if tree := re.fullmatch(f"/api/datasets/{REPOSITORY}/tree/{revision}/?(.*)", path):
            return self.tree(tree[1])
        file = re.fullmatch(f"/datasets/{REPOSITORY}/resolve/{revision}/(.+)", path)
        return part(self.files[file[1]], span) if file and file[1] in self.files else NOT_FOUND

    def tree(self, folder: str) -> Found:
        entries = [{"type": "directory", "path": "data", "oid": "0" * 40, "size": 0}] if not folder else []
        for name, data in self.files.items():
            if name.startswith(folder):
                lfs = {"oid": hashlib.sha256(data).hexdigest(), "pointerSize": 130, "size": len(data)}
                entry = {"type": "file", "path": name, "oid": hashlib.sha1(data).hexdigest(), "size": len(data)}
                entries.append({**entry, "lfs": lfs})
        return (200, json.dumps(entries).encode(), JSON) if entries else NOT_FOUND


def part(data: bytes, span: str) -> Found:
    headers = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "Accept-Ranges": "bytes"}
    if not (asked := re.fullmatch(r"bytes=(\d+)-(\d*)", span)):
        return 200, data, headers
    first, last = int(asked[1]), min(int(asked[2] or len(data) - 1), len(data) - 1)
    return 206, data[first : last + 1], {**headers, "Content-Range": f"bytes {first}-{last}/{len(data)}"}


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        self.server.requests.append(f"{self.command} {path}")
        status, headers, parts = self.server.answer(path, self.headers.get("Range", ""))
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.writelines(parts if self.command == "GET" else ())

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        pass
