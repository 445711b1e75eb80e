"""A local web server that cuts, redirects, lies and refuses, for the tests of downloads."""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Served:
    """One address: what it holds and how it behaves."""

    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    kind: str = "application/octet-stream"
    ranges: bool = True
    etag: str | None = "auto"  # "auto": the content's hash
    cuts: list[int] = field(default_factory=list)  # each request is cut after so many bytes of its answer
    failures: list[int] = field(default_factory=list)  # each request is answered with this status first
    length: bool = True  # False: chunked, no Content-Length
    shift: int = 0  # a range begins so many bytes later than it was asked for
    if_range: bool = True  # False: Range is honoured whatever If-Range says


class Server:
    """The addresses, and what was asked of them."""

    def __init__(self) -> None:
        self.pages: dict[str, Served] = {}
        self.asked: list[tuple[str, str | None]] = []  # path, Range
        self.url = ""

    def add(self, path: str, body: bytes = b"", **options: object) -> str:
        self.pages[path] = Served(body, **options)  # type: ignore[arg-type]
        return self.url + path


def handler(server: Server) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            wanted = self.headers.get("Range")
            server.asked.append((self.path, wanted))
            page = server.pages.get(self.path) or server.pages.get(self.path.partition("?")[0])
            self.close_connection = True
            if page is None:
                self.send_error(404)
                return
            if page.failures:
                self.send_response(page.failures.pop(0))
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            body, status, headers = page.body, page.status, dict(page.headers)
            etag = f'"{hashlib.md5(body).hexdigest()}"' if page.etag == "auto" else page.etag
            same = not page.if_range or self.headers.get("If-Range") in {None, etag}
            if wanted and page.ranges and same and status == 200:
                start = int(wanted.removeprefix("bytes=").rstrip("-")) + page.shift
                if start >= len(body):
                    status, body = 416, b""
                    headers["Content-Range"] = f"bytes */{len(page.body)}"
                else:
                    status, body = 206, body[start:]
                    headers["Content-Range"] = f"bytes {start}-{len(page.body) - 1}/{len(page.body)}"
            length = headers.pop("Content-Length", str(len(body)))
            self.send_response(status)
            self.send_header("Content-Type", page.kind)
            if etag:
                self.send_header("ETag", etag)
            for name, value in headers.items():
                self.send_header(name, value)
            if page.length:
                self.send_header("Content-Length", length)
            else:
                self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            cut = page.cuts.pop(0) if page.cuts else len(body)
            part = body[:cut]
            with contextlib.suppress(OSError):  # the other side may have seen enough
                if page.length:
                    self.wfile.write(part)
                else:
                    if part:
                        self.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
                    if cut >= len(body):
                        self.wfile.write(b"0\r\n\r\n")

    return Handler


@contextmanager
def serving() -> Iterator[Server]:
    server = Server()
    with ThreadingHTTPServer(("127.0.0.1", 0), handler(server)) as httpd:
        httpd.daemon_threads = True
        server.url = f"http://127.0.0.1:{httpd.server_address[1]}"
        thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            httpd.shutdown()
            thread.join()
