"""A stand-in for the Hugging Face Hub on 127.0.0.1, which serves one folder as the dataset roneneldan/TinyStories.

By hand: `python tests/hub.py FOLDER [--port N]`, then export the HF_ENDPOINT it prints. Real code is used against it,
so it answers what the Hub answers; tests stop it, or let it fail, as they need.
"""

import argparse
import hashlib
import json
import re
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

REPOSITORY = "roneneldan/TinyStories"
README = b"---\nlicense: cdla-sharing-1.0\n---\nTinyStories\n"


class Hub(ThreadingHTTPServer):
    """`requests` lists what was asked for. `commit` follows from the folder's contents, as on the real Hub."""

    daemon_threads = True

    def __init__(self, folder: Path, port: int = 0):
        super().__init__(("127.0.0.1", port), Handler)
        self.files = {
            f.relative_to(folder).as_posix(): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()
        }
        self.files.setdefault("README.md", README)
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
            lfs = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
            entries.append(
                {"type": "file", "path": name, "oid": hashlib.sha1(data).hexdigest(), "size": len(data), "lfs": lfs}
            )
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


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Serve FOLDER as the dataset roneneldan/TinyStories.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--port", type=int, default=0)
    arguments = parser.parse_args()
    with Hub(arguments.folder, arguments.port) as hub:
        print(f"export HF_ENDPOINT={hub.endpoint}", flush=True)
        hub.serve_forever()
