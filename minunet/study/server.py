"""The explaining page on localhost: its files, and one endpoint that computes what the page shows.

    GET  /, /page.css, /page.js, ...
    POST /explain       a request as JSON (see `page.from_request`) -> `page.as_dict` as JSON, or {"error": a sentence}

It listens on the loopback address, keeps nothing and writes nothing. A request must be addressed to this machine by
its number or as localhost, so that no foreign page can reach it through a name of its own (DNS rebinding).
"""

from __future__ import annotations

import http.server
import json
import re
import socket
import socketserver
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from http import HTTPStatus
from typing import Any

from minunet.errors import UserError
from minunet.study.explanation import Explanation
from minunet.study.page import SCRIPTS, WEB, as_dict, from_request, html

BODY_LIMIT = 1 << 16        # bytes of a request
SILENCE = 10                # s without a byte after which a client is given up
DEADLINE = 60               # s for a connection, however much it says meanwhile
READ_AWAY = 1 << 20         # bytes of a larger one that are read before it is refused
CONNECTIONS = 32            # at a time; more are closed
EXPLAIN = "/explain"
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
HOST = re.compile(r"(\[[0-9a-f:.]+\]|[^:\[\]]+)(?::\d+)?")
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src data:; "
                               "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class PageServer:
    """The page of an explanation, on a port of the loopback address; port 0 takes any that is free.

    Raises UserError when the port cannot be had, ValueError for more than the page shows.

    >>> from minunet import Geometry
    >>> with PageServer(Explanation(Geometry(3), 4), transposed=False) as server:
    ...     server.url.startswith("http://127.0.0.1:")
    True
    """

    def __init__(self, explanation: Explanation, transposed: bool, port: int = 0):
        page = html(explanation, transposed, fixed=False)
        try:
            self._server = _Server((LOOPBACK[0], port), _Handler)
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise UserError(f"port {port} cannot be had ({reason}); choose another, or 0 for any that is "
                            "free") from None
        self._server.files = {"/": (page.encode(), "text/html"),
                              "/page.css": ((WEB / "page.css").read_bytes(), "text/css")}
        self._server.files |= {f"/{name}": ((WEB / name).read_bytes(), "text/javascript") for name in SCRIPTS}
        self._serving = False

    @property
    def url(self) -> str:
        """Where the page is: http://127.0.0.1:PORT/."""
        return f"http://{LOOPBACK[0]}:{self._server.server_address[1]}/"

    def serve_forever(self) -> None:
        """Answer requests until `close` is called, from another thread, or Ctrl-C."""
        self._serving = True
        self._server.serve_forever(poll_interval=0.1)

    def close(self) -> None:
        """Stop, and give the port back."""
        if self._serving:
            self._server.shutdown()
        self._server.server_close()

    def __enter__(self) -> PageServer:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


class _Server(http.server.ThreadingHTTPServer):
    """A thread for each connection, of which there are a bounded number for a bounded time."""

    files: dict[str, tuple[bytes, str]]

    def __init__(self, *arguments: Any):
        self._free = threading.BoundedSemaphore(CONNECTIONS)
        self._ends: dict[socket.socket, float] = {}         # when a connection is to be over, s
        super().__init__(*arguments)

    def server_bind(self) -> None:
        socketserver.TCPServer.server_bind(self)        # HTTPServer's would ask the network for this machine's name

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._free.acquire(blocking=False):
            return self.shutdown_request(request)
        self._ends[request] = time.monotonic() + DEADLINE
        try:
            super().process_request(request, client_address)
        except BaseException:           # there is no thread, which would do it
            self._over(request)
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._over(request)

    def _over(self, request: socket.socket) -> None:
        if self._ends.pop(request, None) is not None:       # Ctrl-C right after its thread began leads here twice
            self._free.release()

    def service_actions(self) -> None:
        """Called ten times a second: hang up on those whose time is over; their threads then find nothing to read."""
        for request, end in list(self._ends.items()):
            if time.monotonic() > end:
                with suppress(OSError):         # it ended just now
                    request.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], OSError):      # which is a client that went away
            super().handle_error(request, client_address)


class _Refusal(ValueError):
    """A sentence that goes with another status than 400."""

    def __init__(self, status: int, sentence: str, **headers: str):
        super().__init__(sentence)
        self.status, self.headers = status, headers


class _Handler(http.server.BaseHTTPRequestHandler):
    """One request; in HTTP/1.0, so that a connection ends with its answer."""

    server: _Server
    timeout = SILENCE

    def do_GET(self) -> None:
        self._answer(self._file)

    do_HEAD = do_GET

    def do_POST(self) -> None:
        self._answer(self._explain)

    def _answer(self, find: Callable[[], tuple[bytes, str]]) -> None:
        try:
            self._refuse_strangers()
            body, kind = find()
        except _Refusal as refusal:
            self._send_sentence(refusal.status, str(refusal), refusal.headers)
        except ValueError as error:
            self._send_sentence(400, str(error))
        except OSError:
            raise
        except Exception:
            self._send_sentence(500, "the server failed; the reason stands in the terminal in which it runs")
            raise
        else:
            self._send(200, body, kind)

    def _refuse_strangers(self) -> None:
        hosts = self.headers.get_all("Host", [])
        match = HOST.fullmatch(hosts[0].strip().lower()) if len(hosts) == 1 else None
        if match is None or match[1] not in {*LOOPBACK, self.connection.getsockname()[0]}:
            raise _Refusal(403, f"this server answers at {' and '.join(LOOPBACK)} only")
        if self.headers.get("Origin", f"http://{hosts[0].strip()}") != f"http://{hosts[0].strip()}":
            raise _Refusal(403, "this server answers its own page only")

    def _file(self) -> tuple[bytes, str]:
        path = self.path.partition("?")[0]
        if path == EXPLAIN:
            raise _Refusal(405, f"{EXPLAIN} wants a POST with JSON", Allow="POST")
        if path not in self.server.files:
            raise _Refusal(404, f"there is no {path[:80]} here, only {', '.join([*self.server.files, EXPLAIN])}")
        return self.server.files[path]

    def _explain(self) -> tuple[bytes, str]:
        body = self._body()
        if self.path != EXPLAIN:
            raise _Refusal(404, f"POST goes to {EXPLAIN}; got {self.path[:80]}")
        try:
            request = json.loads(body.decode("utf-8"), parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"the request is not JSON that can be read: {error}") from None
        return json.dumps(as_dict(*from_request(request)), allow_nan=False).encode(), "application/json"

    def _body(self) -> bytes:
        lengths = self.headers.get_all("Content-Length", [])
        if len(lengths) != 1 or not (lengths[0].isascii() and lengths[0].isdecimal()) or len(lengths[0]) > 18:
            raise _Refusal(411, "a POST must tell its length, once, as a whole number (Content-Length)")
        if (length := int(lengths[0])) > BODY_LIMIT:
            # most clients listen only after they have sent everything
            self.rfile.read(min(length, READ_AWAY))
            raise _Refusal(413, f"a request has at most {BODY_LIMIT:,} bytes; got {length:,}")
        return self.rfile.read(length)

    def _send_sentence(self, status: int, sentence: str, headers: dict[str, str] | None = None) -> None:
        self._send(status, json.dumps({"error": sentence}).encode(), "application/json", headers)

    def _send(self, status: int, body: bytes, kind: str, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {**HEADERS, **(headers or {}), "Content-Type": f"{kind}; charset=utf-8",
                            "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What http.server itself refuses (a line that is no HTTP, an unknown method), as JSON too."""
        if code == HTTPStatus.NOT_IMPLEMENTED:
            self._send_sentence(405, "this server knows GET, HEAD and POST", {"Allow": "GET, HEAD, POST"})
        else:
            self._send_sentence(code, f"no request that can be read: {message or HTTPStatus(code).phrase}")

    def version_string(self) -> str:
        return "minunet"

    def log_message(self, *_: Any) -> None:
        """Nothing: a page that is looked at is no news."""


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number")
