"""Bad input over raw sockets: each gets a clear answer, and the daemon goes on."""

import itertools
import json
import time

import pytest

from service import assert_problem, service  # noqa: F401

HOST = b"Host: localhost\r\n"


@pytest.fixture(autouse=True)
def daemon_goes_on(service):
    yield
    assert service.ask("GET", "/healthz").status == 200


@pytest.mark.parametrize(
    "body, status",
    [
        (b"", 400),
        (b"{", 400),
        (b"nonsense", 400),
        (b'{"kind":"eval"} trailing', 400),
        (b'{"kind":"\xff"}', 400),
        (b'{"a":1,"a":2}', 422),
        (b'{"kind":1e400}', 422),
        (b'{"kind":99999999999999999999}', 422),
        (b"[" * 100000 + b"]" * 100000, 400),
        (b"[]", 422),
        (b'{"kind":"no-such-kind"}', 422),
        (b'{"kind":"eval","surprise":1}', 422),
    ],
    ids=itertools.count(),
)
def test_bodies_that_are_no_job(service, body, status):
    assert_problem(service.ask("POST", "/v1/jobs", body), status)


@pytest.mark.parametrize(
    "head",
    [
        b"Content-Length: 2\r\nContent-Length: 2\r\n",
        b"Content-Length: 2\r\nContent-Length: 3\r\n",
        b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: chunked, identity\r\n",
        b"Transfer-Encoding: xchunked\r\n",
        b"Content-Length: -1\r\n",
        b"Content-Length: 0x2\r\n",
        b"Content-Length : 2\r\n",
        HOST + b"Content-Length: 2\r\n",
    ],
    ids=itertools.count(),
)
def test_smuggling_is_refused(service, head):
    answer = service.raw(
        b"POST /v1/jobs HTTP/1.1\r\n" + HOST + head + b"\r\n{}GET /v1/version HTTP/1.1\r\n" + HOST + b"\r\n"
    )
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b'"protocol"' not in answer  # the smuggled request was not answered


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"\r\n\r\n",
        b"GET\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET / HTTP/9.9\r\n" + HOST + b"\r\n",
        b"GET /" + b"a" * 100000 + b" HTTP/1.1\r\n" + HOST + b"\r\n",
        b"GET / HTTP/1.1\r\n" + HOST + b"X: " + b"a" * 100000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"".join(b"X-%d: y\r\n" % i for i in range(5000)) + b"\r\n",
        b"POST /v1/jobs HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n",
        b"POST /v1/jobs HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n",
    ],
    ids=itertools.count(),
)
def test_what_is_not_http(service, request_bytes):
    try:
        answer = service.raw(request_bytes)
    except OSError:
        return  # it closed while we were still sending
    assert answer == b"" or answer[9:10] in b"45"


def test_bodies_over_the_limit(service):
    answer = service.raw(b"POST /v1/jobs HTTP/1.1\r\n" + HOST + b"Content-Length: 1000000000\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 413 ") and b"application/problem+json" in answer
    with service.dial() as s:
        s.sendall(b"POST /v1/jobs HTTP/1.1\r\n" + HOST + b"Content-Length: 2\r\nExpect: 100-continue\r\n\r\n")
        assert s.recv(100).startswith(b"HTTP/1.1 100 ")
        s.sendall(b"[]")
        assert s.recv(1000).startswith(b"HTTP/1.1 422 ")


def test_wrong_types_of_content(service):
    assert_problem(service.ask("POST", "/v1/jobs", "{}", {"Content-Type": "multipart/form-data; boundary=x"}), 415)
    assert_problem(service.ask("POST", "/v1/jobs", "{}", {"Content-Encoding": "gzip"}), 415)
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    assert_problem(service.ask("POST", "/v1/jobs", "{}", form), 422)
    answer = service.raw(b"POST /v1/jobs HTTP/1.1\r\n" + HOST + b"\r\n")
    assert answer.startswith(b"HTTP/1.1 411 ")


def test_paths_with_odd_escapes(service):
    for target in ("/v1/jobs/%zz", "/v1/jobs/%", "/v1/jobs/a%00", "/v1/jobs/%ff%fe"):
        assert_problem(service.ask("GET", target), 400)
    for target in ("/v1/jobs/..%2f..%2fetc", "/v1/jobs/%2e%2e", "/v1//jobs", "//v1/jobs", "/v1/jobs/", "/v1/jobs/x/y"):
        assert_problem(service.ask("GET", target), 404)


def test_half_closed_clients_get_their_answer(service):
    body = b'{"kind":"eval"}'
    head = b"POST /v1/jobs HTTP/1.1\r\n" + HOST + b"Content-Length: %d\r\n\r\n" % len(body)
    start = time.monotonic()
    answer = service.raw(head + body)
    assert answer.startswith(b"HTTP/1.1 422 ") and time.monotonic() - start < 5
    ready = service.raw(b"GET /readyz HTTP/1.1\r\n" + HOST + b"\r\n")
    assert json.loads(ready.split(b"\r\n\r\n")[1])["status"] == "ready"


def test_clients_that_leave_while_waiting(service):
    for _ in range(50):
        with service.dial() as s:
            s.sendall(b"GET /readyz HTTP/1.1\r\n" + HOST + b"\r\n")
