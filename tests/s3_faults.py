"""An S3 endpoint that fails as real ones do: a proxy in front of the tests' S3 server.

Which request fails, and how, follows from its number: the same job meets about the same faults.
It can also pretend to hold a bucket of a great many keys, which it lists by itself.
"""

from __future__ import annotations

import http.client
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import numpy as np

FAULTS = ("500", "503", "reset", "reset late", "cut body", "short body", "slow body")
_ERROR = """<?xml version="1.0" encoding="UTF-8"?>
<Error><Code>{code}</Code><Message>{message}</Message><RequestId>1</RequestId></Error>"""


class FaultyS3:
    """The proxy. ``faults`` counts what was done to whom; ``share`` of the requests fail."""

    def __init__(self, upstream: str, share: float, seed: int = 0, kinds: Sequence[str] = FAULTS):
        self.upstream, self.share, self.kinds = urlsplit(upstream).netloc, share, tuple(kinds)
        self.faults: Counter[str] = Counter()
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.many_keys = 0  # keys of the pretended bucket ``many``
        self._rng = np.random.default_rng(seed)
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def fault(self, method: str, path: str, headers: dict[str, str]) -> str | None:
        with self._lock:
            self.requests.append((method, path, headers))
            if self._rng.random() >= self.share:
                return None
            kind = self.kinds[self._rng.integers(len(self.kinds))]
            if kind in ("cut body", "short body", "slow body") and method != "GET":
                kind = "reset"
            self.faults[f"{method} {kind}"] += 1
            return kind

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args: object) -> None:
                pass

            def _serve(self) -> None:
                body = self._body()
                kind = proxy.fault(self.command, self.path, dict(self.headers))
                if kind == "reset":
                    self._reset()
                elif kind in ("500", "503"):
                    code = "InternalError" if kind == "500" else "SlowDown"
                    text = _ERROR.format(code=code, message="Please reduce your request rate.")
                    self._answer(int(kind), {"Content-Type": "application/xml"}, text.encode())
                elif proxy.many_keys and self.path.startswith("/many"):
                    status = 200 if self.command == "GET" else 404
                    self._answer(status, {"Content-Type": "application/xml"}, self._list())
                else:
                    self._forward(body, kind)

            do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = _serve

            def _body(self) -> bytes:
                if self.headers.get("Transfer-Encoding") == "chunked":
                    parts = []
                    while size := int(self.rfile.readline().split(b";")[0], 16):
                        parts.append(self.rfile.read(size))
                        self.rfile.readline()
                    while self.rfile.readline().strip():  # trailers
                        pass
                    return b"".join(parts)
                return self.rfile.read(int(self.headers.get("Content-Length") or 0))

            def _forward(self, body: bytes, kind: str | None) -> None:
                connection = http.client.HTTPConnection(proxy.upstream, timeout=60)
                headers = {k: v for k, v in self.headers.items() if k != "Transfer-Encoding"}
                headers["Content-Length"] = str(len(body))
                connection.request(self.command, self.path, body, headers)
                answer = connection.getresponse()
                content = answer.read()
                kept = {
                    k: v
                    for k, v in answer.getheaders()
                    if k.lower() not in ("transfer-encoding", "connection", "server", "date")
                }
                connection.close()
                if kind == "reset late":  # it was done, and nobody heard of it
                    self._reset()
                    return
                self._answer(answer.status, kept, content, kind)

            def _answer(
                self, status: int, headers: dict[str, str], content: bytes, kind: str | None = None
            ) -> None:
                if kind == "short body" and status in (200, 206):  # a lie that is well-formed
                    content = content[: len(content) // 2]
                self.send_response(status)
                for name, value in headers.items():
                    if name.lower() != "content-length" or self.command == "HEAD":
                        self.send_header(name, value)
                if self.command != "HEAD":
                    self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                if self.command == "HEAD":
                    return
                if kind == "cut body" and len(content) > 1:
                    self.wfile.write(content[: len(content) // 2])
                    self.wfile.flush()
                    self._reset()
                    return
                if kind == "slow body":
                    for part in range(4):
                        step = -(-len(content) // 4)
                        self.wfile.write(content[part * step : (part + 1) * step])
                        self.wfile.flush()
                        time.sleep(0.05)
                    return
                self.wfile.write(content)

            def _reset(self) -> None:
                linger = struct.pack("ii", 1, 0)  # close() then sends RST and not FIN
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                self.connection.close()
                self.close_connection = True

            def _list(self) -> bytes:
                query = parse_qs(urlsplit(self.path).query)
                start = int(query.get("continuation-token", ["0"])[0])
                end = min(start + int(query.get("max-keys", ["1000"])[0]), proxy.many_keys)
                keys = "".join(
                    f"<Contents><Key>shards/{i:06d}.tar</Key><LastModified>2026-01-01T00:00:00.000Z"
                    f'</LastModified><ETag>"{i:032x}"</ETag><Size>1000</Size></Contents>'
                    for i in range(start, end)
                )
                more = end < proxy.many_keys
                token = f"<NextContinuationToken>{end}</NextContinuationToken>" if more else ""
                return (
                    '<?xml version="1.0" encoding="UTF-8"?><ListBucketResult><Name>many</Name>'
                    f"<KeyCount>{end - start}</KeyCount><IsTruncated>{str(more).lower()}"
                    f"</IsTruncated>{token}{keys}</ListBucketResult>"
                ).encode()

        return Handler


@contextmanager
def faulty_s3(upstream: str, share: float, **options: object) -> Iterator[FaultyS3]:
    proxy = FaultyS3(upstream, share, **options)  # type: ignore[arg-type]
    try:
        yield proxy
    finally:
        proxy.close()
