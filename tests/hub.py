"""A hub in a folder: what huggingface_hub and datasets ask of one, answered from <kind>s/<owner>/<name>/."""

import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

SHA = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def serving(folder: Path):
    """Yield (address, what was asked as "METHOD path")."""
    asked = []

    class Hub(BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def do_HEAD(self):  # noqa: N802
            self.answer()

        do_GET = do_POST = do_HEAD  # noqa: N815

        def answer(self):
            asked.append(f"{self.command} {self.path}")
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            path, deep = unquote(urlsplit(self.path).path), "recursive=true" in self.path
            if path.startswith("/api/"):
                kind, owner, name, *further = path.removeprefix("/api/").split("/")
                found = api(folder / kind / owner / name, f"{owner}/{name}", further, body, deep)
                if found is None:
                    return self.send(404, b"{}", "application/json")
                return self.send(200, json.dumps(found).encode(), "application/json")
            before, _, after = path.removeprefix("/").partition("/resolve/")
            file = folder / (before if before.startswith("datasets/") else f"models/{before}")
            file = file / after.split("/", 1)[1]
            if not file.is_file():
                return self.send(404, b"", "text/plain", {"X-Error-Code": "EntryNotFound"})
            content = file.read_bytes()
            return self.send(200, content, "application/octet-stream", ranges=self.headers.get("Range"))

        def send(self, status, content, kind, headers=None, ranges=None):
            whole = content
            if ranges and ranges.startswith("bytes="):
                first, _, last = ranges.removeprefix("bytes=").partition("-")
                end = int(last) + 1 if last else len(whole)
                content, status = whole[int(first) : end], 206
                headers = {"Content-Range": f"bytes {first}-{int(first) + len(content) - 1}/{len(whole)}"}
            self.send_response(status)
            marks = {"ETag": f'"{hashlib.sha256(whole).hexdigest()}"', "X-Repo-Commit": SHA}
            for key, value in {"Content-Type": kind, **marks, **(headers or {})}.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Accept-Ranges", "bytes")
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()


def entry(root: Path, path: Path) -> dict:
    named = {"path": path.relative_to(root).as_posix(), "oid": hashlib.sha1(str(path).encode()).hexdigest()}
    if path.is_dir():
        return {"type": "directory", "size": 0, **named}
    return {"type": "file", "size": path.stat().st_size, **named}


def api(root: Path, name: str, further: list[str], body: bytes, deep: bool):
    """What the hub says of the repository in `root`; None: there is no such thing."""
    if not root.is_dir():
        return None
    match further:
        case [] | ["revision", _]:
            files = [file.relative_to(root).as_posix() for file in sorted(root.rglob("*")) if file.is_file()]
            listed = [{"rfilename": file} for file in files]
            return {"_id": "1", "id": name, "sha": SHA, "siblings": listed, "private": False, "tags": []}
        case ["tree", _, *below]:
            start = root.joinpath(*below)
            return [entry(root, path) for path in sorted(start.rglob("*") if deep else start.glob("*"))]
        case ["paths-info", _]:
            asked = json.loads(body)["paths"] if body.startswith(b"{") else parse_qs(body.decode())["paths"]
            return [entry(root, root / path) for path in asked if (root / path).exists()]
    return None
