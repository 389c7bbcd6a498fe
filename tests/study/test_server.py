"""The page's server, reached through real sockets: what it gives, what it refuses, and what it survives."""

import http.client
import json
import socket
import threading
import time
import urllib.error
import urllib.request
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minunet import Geometry
from minunet.errors import UserError
from minunet.study import server as server_module
from minunet.study.explanation import Explanation
from minunet.study.page import WEB, as_dict, from_request
from minunet.study.server import BODY_LIMIT, PageServer


def port_of(server):
    return int(server.url.rstrip("/").rpartition(":")[2])


def ask(server, method="POST", path="/explain", body=None, headers=None):
    """Status, headers and body of an answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port_of(server), timeout=30)
    try:
        connection.request(method, path, body if isinstance(body, (bytes, type(None))) else json.dumps(body),
                           headers or {})
        with connection.getresponse() as response:
            return response.status, response.headers, response.read()
    finally:
        connection.close()


def raw(server, data):
    """All that comes back for these bytes."""
    with socket.create_connection(("127.0.0.1", port_of(server)), timeout=30) as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: connection.recv(1 << 16), b""))


def refused(server, status, *arguments, **options):
    """The sentence of a refusal with this status, which must be JSON."""
    found, headers, body = ask(server, *arguments, **options)
    assert found == status and headers["Content-Type"] == "application/json; charset=utf-8"
    (name, sentence), = json.loads(body).items()
    assert name == "error" and "\n" not in sentence and len(sentence) < 500
    return sentence


def test_the_page_and_its_files(server):
    assert server.url.startswith("http://127.0.0.1:")
    with urllib.request.urlopen(server.url) as response:
        page = response.read().decode()
    assert page.startswith("<!doctype html>") and '"fixed":false' in page
    kinds = {".css": "text/css", ".js": "text/javascript"}
    files = [file for file in WEB.iterdir() if file.suffix in kinds]
    assert len(files) == 5
    for file in files:
        status, headers, body = ask(server, "GET", f"/{file.name}")
        assert status == 200 and body == file.read_bytes()
        assert headers["Content-Type"] == f"{kinds[file.suffix]}; charset=utf-8"
    assert ask(server, "GET", "/?x=1")[2].decode() == page


@pytest.mark.parametrize("method, path", [("GET", "/"), ("POST", "/explain"), ("GET", "/nothing"), ("PUT", "/")])
def test_every_answer_has_the_protecting_headers(server, method, path):
    _, headers, body = ask(server, method, path, body={})
    policy = headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'") and "unsafe" not in policy
    assert headers["X-Content-Type-Options"] == "nosniff" and headers["Cache-Control"] == "no-store"
    assert headers["Server"] == "minunet" and int(headers["Content-Length"]) == len(body)
    assert "Access-Control-Allow-Origin" not in headers


def test_head_gives_no_body(server):
    status, headers, body = ask(server, "HEAD", "/")
    assert status == 200 and int(headers["Content-Length"]) > 1000 and body == b""


def test_explain_computes(server):
    asked = {"transposed": True, "size": [2, 3], "stride": 2, "weight": [1, 2, 3, 4], "kernel": 2}
    status, headers, body = ask(server, body=asked)
    assert status == 200 and headers["Content-Type"] == "application/json; charset=utf-8"
    assert json.loads(body) == as_dict(*from_request(asked))


@pytest.mark.parametrize("body, sentence", [
    (b"", "the request is not JSON that can be read"),
    (b"{", "not JSON"), (b"\xff\xfe", "not JSON"), (b"[" * 60000, "not JSON"),
    (b'{"x":' * 10000 + b"1" + b"}" * 10000, "not JSON"),
    (b'{"size": ' + b"9" * 5000 + b"}", "not JSON"),
    (b'{"x": [NaN]}', "NaN is no number"), (b'{"x": [-Infinity]}', "is no number"),
    (b'{"x": [1e999]}', "x must be a list of 16 numbers"), (b'{"stride": 1e999}', "got inf"),
    (b"null", "must be an object"), (b"[]", "must be an object"), (b'"text"', "must be an object"),
    ({"size": [10000, 10000]}, "too large for the page"),
    ({"size": 100, "kernel": 90}, "its convolution matrix would have 1,210,000 cells"),
    ({"size": 9, "kernel": 1}, "at most 4,096 are shown"),
    ({"size": 2}, "kernel: its window spans 3 px in height"),
    ({"stride": False}, "stride must be a whole number"),
    ({"x": [True] * 16}, "x[0, 0] must be a number"),
])
def test_bad_input_gets_a_sentence(server, body, sentence):
    assert sentence in refused(server, 400, body=body)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 12) | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3), max_leaves=8)
names = st.sampled_from(["size", "kernel", "stride", "padding", "dilation", "output_padding", "channels", "transposed",
                         "weight", "x", "y"])


@given(st.dictionaries(names, st.integers(-1, 8) | json_values, max_size=4) | json_values)
def test_no_input_makes_the_server_fail(server, asked):
    status, _, body = ask(server, body=asked)
    found = json.loads(body)
    assert status == 200 and "settings" in found or status == 400 and list(found) == ["error"]


def test_a_body_that_is_too_long(server):
    assert f"at most {BODY_LIMIT:,} bytes" in refused(server, 413, body=b" " * (BODY_LIMIT + 1))
    assert ask(server, body=b"{}" + b" " * (BODY_LIMIT - 2))[0] == 200
    # a length that is told, and never sent
    answer = raw(server, b"POST /explain HTTP/1.1\r\nHost: localhost\r\nContent-Length: 999999999999\r\n\r\n")
    assert answer.startswith(b"HTTP/1.0 413 ")


@pytest.mark.parametrize("lengths", [[], ["x"], ["-1"], ["1.5"], ["²"], ["2", "3"], ["9" * 5000], ["+2"]])
def test_a_body_must_tell_its_length(server, lengths):
    lines = "".join(f"Content-Length: {length}\r\n" for length in lengths)
    answer = raw(server, f"POST /explain HTTP/1.1\r\nHost: localhost\r\n{lines}\r\n{{}}".encode())
    assert answer.startswith(b"HTTP/1.0 411 ") and b'"error"' in answer


@pytest.mark.parametrize("path", ["/nothing", "/page.py", "/../page.py", "/web/", "/%2e%2e/setup.cfg", "/explain/"])
def test_other_paths(server, path):
    assert "here, only /" in refused(server, 404, "GET", path)
    assert "POST goes to /explain" in refused(server, 404, "POST", path, body={})


def test_other_methods(server):
    for method in ("PUT", "DELETE", "OPTIONS", "TRACE", "NONSENSE"):
        assert "GET, HEAD and POST" in refused(server, 405, method, "/")
    assert ask(server, "PATCH", "/")[1]["Allow"] == "GET, HEAD, POST"
    assert "wants a POST" in refused(server, 405, "GET", "/explain")


@pytest.mark.parametrize("host, status", [
    ("127.0.0.1", 200), ("localhost", 200), ("LOCALHOST:80", 200), ("[::1]:8000", 200), ("evil.example", 403),
    ("127.0.0.1.evil.example", 403), ("localhost.evil.example:80", 403), ("", 403), ("evil@127.0.0.1", 403),
    ("127.0.0.1:80:80", 403), ("127.0.0.1:x", 403), ("0.0.0.0", 403),
])
def test_only_this_machine_is_answered(server, host, status):
    """A foreign page may point its own name at 127.0.0.1; the browser then sends that name."""
    for method, path in (("GET", "/"), ("POST", "/explain")):
        found, _, body = ask(server, method, path, body={}, headers={"Host": host})
        assert found == status and (status == 200 or b"this server answers at 127.0.0.1" in body)


def test_a_missing_or_second_host_is_refused(server):
    for lines in (b"", b"Host: localhost\r\nHost: localhost\r\n"):
        assert raw(server, b"GET / HTTP/1.0\r\n" + lines + b"\r\n").startswith(b"HTTP/1.0 403 ")


def test_only_its_own_page_may_ask(server):
    own = server.url.rstrip("/")
    assert ask(server, body={}, headers={"Origin": own})[0] == 200
    for origin in ("http://evil.example", "null", own.replace("http:", "https:"), "http://127.0.0.1:1"):
        assert "its own page only" in refused(server, 403, body={}, headers={"Origin": origin})


@pytest.mark.parametrize("data, status", [
    (b"nonsense\r\n\r\n", b"400"), (b"GET / HTTP/x.y\r\n\r\n", b"400"), (b"GET / HTTP/3.0\r\n\r\n", b"505"),
    (b"GET /" + b"a" * 70000 + b" HTTP/1.0\r\n\r\n", b"414"), (b"\x16\x03\x01\x02\x00\x01\r\n\r\n", b"400"),
    (b"GET / HTTP/1.0\r\n" + b"A: b\r\n" * 200 + b"\r\n", b"431"),
])
def test_what_is_no_http(server, data, status):
    answer = raw(server, data)
    head, _, body = answer.rpartition(b"\r\n\r\n")
    assert b"<html" not in answer and "error" in json.loads(body)
    assert not head or head.split()[1] == status


def test_clients_that_go_away_or_say_nothing(server, capsys, monkeypatch):
    monkeypatch.setattr(server_module._Handler, "timeout", 0.2)
    for data in (b"", b"GET", b"POST /explain HTTP/1.0\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{"):
        with socket.create_connection(("127.0.0.1", port_of(server)), timeout=30) as connection:
            connection.sendall(data)
            while connection.recv(1 << 16):     # the server gives them up and closes
                pass
        raw(server, data)
        with socket.create_connection(("127.0.0.1", port_of(server)), timeout=30) as connection:
            connection.sendall(data)            # and these are gone at once
    assert ask(server, body={})[0] == 200
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


def test_a_client_that_never_comes_to_an_end(monkeypatch, capsys):
    """It says something again and again, and so is never silent: its time is bounded all the same."""
    monkeypatch.setattr(server_module, "DEADLINE", 0.3)
    with PageServer(Explanation(Geometry(3), 4), transposed=False) as server:
        server._server._free = threading.BoundedSemaphore(1)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        with socket.create_connection(("127.0.0.1", port_of(server)), timeout=30) as connection:
            connection.sendall(b"POST /explain HTTP/1.0\r\nHost: localhost\r\nContent-Length: 60000\r\n\r\n")
            with pytest.raises(OSError):
                for _ in range(1000):           # 20 s, if it may
                    connection.sendall(b" ")
                    time.sleep(0.02)
        deadline = time.monotonic() + 30
        while server._server._ends and time.monotonic() < deadline:
            time.sleep(0.01)
        assert ask(server, "GET", "/")[0] == 200            # its place is free again
    thread.join(timeout=10)
    assert not thread.is_alive() and capsys.readouterr().err == ""


def test_a_thread_that_cannot_start_leaves_its_place_free(monkeypatch, capsys):
    def refuse(_):
        raise RuntimeError("can't start new thread")

    with PageServer(Explanation(Geometry(3), 4), transposed=False) as server:
        server._server._free = threading.BoundedSemaphore(1)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        with monkeypatch.context() as patched:
            patched.setattr(server_module.socketserver.threading.Thread, "start", refuse)
            with suppress(ConnectionError):         # a request that nobody has read may be answered with a reset
                assert raw(server, b"GET / HTTP/1.0\r\nHost: localhost\r\n\r\n") == b""
        assert ask(server, "GET", "/")[0] == 200
    thread.join(timeout=10)
    assert "can't start new thread" in capsys.readouterr().err


def test_more_connections_than_it_takes_are_closed():
    with PageServer(Explanation(Geometry(3), 4), transposed=False) as server:
        server._server._free = threading.BoundedSemaphore(1)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        with socket.create_connection(("127.0.0.1", port_of(server)), timeout=30) as first:
            first.sendall(b"GET / HTTP/1.0\r\n")
            with socket.create_connection(("127.0.0.1", port_of(server)), timeout=30) as second:
                assert second.recv(1) == b""
            first.sendall(b"Host: localhost\r\n\r\n")
            assert first.recv(15).startswith(b"HTTP/1.0 200")
            while first.recv(1 << 16):
                pass
    thread.join(timeout=10)
    assert not thread.is_alive()


def test_a_fault_of_its_own_is_told_and_shown(server, capsys, monkeypatch):
    monkeypatch.setattr(server_module, "as_dict", lambda *_: 1 / 0)
    assert "the server failed" in refused(server, 500, body={})
    monkeypatch.undo()
    assert ask(server, body={})[0] == 200
    shown = ""
    while "ZeroDivisionError" not in shown:     # written by the thread that answered
        shown += capsys.readouterr().err
        time.sleep(0.01)


def test_a_port_that_is_taken(server):
    with pytest.raises(UserError, match=r"^port \d+ cannot be had \(.*\); choose another, or 0 for any"):
        PageServer(Explanation(Geometry(3), 4), False, port=port_of(server))
    with pytest.raises(UserError, match="^port 70000 cannot be had"):
        PageServer(Explanation(Geometry(3), 4), False, port=70000)


def test_closing_gives_the_port_back():
    server = PageServer(Explanation(Geometry(3), 4), False)
    port = port_of(server)
    server.close()                              # never served
    with PageServer(Explanation(Geometry(3), 4), False, port=port) as again:
        assert port_of(again) == port
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(again.url)


def test_too_much_for_the_page_is_said_at_once():
    with pytest.raises(ValueError, match="too large for the page"):
        PageServer(Explanation(Geometry(1), 9), False)


def test_it_listens_on_the_loopback_address_alone(server):
    assert server._server.server_address[0] == "127.0.0.1"


def test_the_page_may_do_nothing_else(server):
    _, headers, _ = ask(server, "GET", "/")
    assert dict(rule.split(" ", 1) for rule in headers["Content-Security-Policy"].split("; ")) == {
        "default-src": "'none'", "script-src": "'self'", "style-src": "'self'", "img-src": "data:",
        "connect-src": "'self'", "base-uri": "'none'", "form-action": "'none'", "frame-ancestors": "'none'"}
    assert headers["Referrer-Policy"] == "no-referrer" and headers["Cross-Origin-Resource-Policy"] == "same-origin"


def test_silence_and_time_are_bounded():
    assert 0 < server_module._Handler.timeout < server_module.DEADLINE <= 60
