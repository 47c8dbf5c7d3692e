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
    "body, place",
    [
        (b"", ""),
        (b"{", "line 1, column 1"),
        (b"nonsense", "line 1"),
        (b'{"kind":"eval"} trailing', "line 1"),
        (b'{"kind":"eval",}', "line 1, column 16"),
        (b'{"kind":\n"\xff"}', "line 2"),
        (b'{"kind":"\xed\xa0\x80"}', "line 1"),
        (b'{"kind":"eval\x00"}', "NUL"),
        (b'{"kind":NaN}', "line 1"),
        (b"[" * 100000 + b"]" * 100000, "too deep at line 1, column 65"),
        (b'{"a":' * 70 + b"1" + b"}" * 70, "too deep"),
    ],
    ids=itertools.count(),
)
def test_bodies_that_are_no_json(service, body, place):
    answer = service.ask("POST", "/v1/jobs", body)
    assert_problem(answer, 400)
    assert place in answer.json["detail"]


JOB = '"kind":"eval","model":"org/m","dataset":"d"'
PROFILE = '"kind":"profile","model":"org/m","calibration":{"dataset":"d"}'


@pytest.mark.parametrize(
    "body, pointer",
    [
        ('{"a":1,"a":2}', "/a"),
        ('{"kind":"profile","calibration":{"seed":1,"seed":1}}', "/calibration/seed"),
        ('{"kind":1e400}', "/kind"),
        ('{"a":[0,99999999999999999999]}', "/a/1"),
        ('{%s,"priority":1e300}' % JOB, "/priority"),
        ('{%s,"priority":101}' % JOB, "/priority"),
        ('{%s,"priority":1.5}' % JOB, "/priority"),
        ('{%s,"priority":"1"}' % JOB, "/priority"),
        ('{%s,"windows":9223372036854775807}' % JOB, "/windows"),
        ('{%s,"label":"a\\u0000b"}' % JOB, "/label"),
        ('{%s,"label":["a"]}' % JOB, "/label"),
        ('{%s,"surprise":1}' % JOB, "/surprise"),
        ('{%s,"uniform":{"method":"rtn","bits":3,"grup":64}}' % JOB, "/uniform/grup"),
        ('{%s,"uniform":{"method":"rtn","bits":7}}' % JOB, "/uniform/bits"),
        ('{%s,"candidates":[{"method":"rtn","bits":[2,3,"4"]}]}' % PROFILE, "/candidates/0/bits/2"),
        ('{%s,"candidates":{}}' % PROFILE, "/candidates"),
        ('{%s,"candidates":[]}' % PROFILE, "/candidates"),
        ('{%s,"candidates":[{"method":"none"}],"layers":"("}' % PROFILE, "/layers"),
        ("[]", ""),
        ('"eval"', ""),
        ('{"kind":"no-such-kind"}', "/kind"),
        ('{"kind":["eval"]}', "/kind"),
        ("{}", "/kind"),
        ('{"kind":"eval"}', "/model"),
    ],
    ids=itertools.count(),
)
def test_json_that_is_no_job(service, body, pointer):
    assert_problem(service.ask("POST", "/v1/jobs", body), 422, pointer)


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
    for target in (b"POST /v1/jobs", b"POST /v1/models/org/m/tokenize", b"PUT /v1/datasets/d"):
        answer = service.raw(target + b" HTTP/1.1\r\n" + HOST + b"Content-Length: 5000000000\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 413 ") and b"application/problem+json" in answer
    with service.dial() as s:
        s.sendall(b"POST /v1/jobs HTTP/1.1\r\n" + HOST + b"Content-Length: 2\r\nExpect: 100-continue\r\n\r\n")
        assert s.recv(100).startswith(b"HTTP/1.1 100 ")
        s.sendall(b"[]")
        assert s.recv(1000).startswith(b"HTTP/1.1 422 ")
    chunks = iter([b" " * 65536] * 17)  # 1 MiB and one more
    try:
        assert_problem(service.ask("POST", "/v1/jobs", chunks), 413)
    except OSError:
        pass  # it was answered, and closed, while we still sent


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


def test_half_closed_clients_get_their_stream(service):
    """To its end: that of a job that has ended, and that of one that still runs."""
    service.put_dataset()
    for label, states in (("rows=1", ("succeeded",)), ("rows=3 slow=100", ("queued", "running"))):
        job = service.submit(label)["id"]
        service.wait_for(job, *states)
        told = service.raw(b"GET /v1/jobs/%s/events HTTP/1.1\r\n" % job.encode() + HOST + b"\r\n")
        assert b'"state":"succeeded"' in told and told.endswith(b"\r\n0\r\n\r\n")


def test_the_first_line_of_a_refusal_says_where_and_whether_there_is_more(service):
    one = service.ask("POST", "/v1/jobs", {"kind": "eval", "dataset": "d"})
    two = service.ask("POST", "/v1/jobs", {"kind": "eval", "dataset": "d", "windows": 0})
    assert one.json["detail"] == "/model: is required" and one.json["errors"][0]["detail"] == "is required"
    assert two.json["detail"] == "/model: is required (and 1 more; see errors)" and len(two.json["errors"]) == 2
    assert service.ask("GET", "/v1/jobs/01X").json["detail"].startswith("there is no job")


def test_what_only_begins_with_the_id_of_a_job_is_none(service):
    service.put_dataset()
    job = service.submit("rows=1")["id"]
    service.wait_for(job, "succeeded")
    for method, tail in (("GET", "x"), ("PATCH", "x"), ("POST", "%20x/retry"), ("POST", "x/cancel"), ("DELETE", "x")):
        answer = service.ask(method, f"/v1/jobs/{job}{tail}", {"priority": 1} if method == "PATCH" else None)
        assert_problem(answer, 404)
    assert service.job(job)["priority"] == 0


def test_unknown_things_are_named(service):
    service.put_dataset()
    for body, pointer, name in (
        ({"kind": "eval", "model": "no/such", "dataset": "d"}, "/model", "no/such"),
        ({"kind": "eval", "model": "org/m", "dataset": "nosuch"}, "/dataset", "nosuch"),
        ({"kind": "eval", "model": "org/m", "dataset": "d", "allocation": "01X"}, "/allocation", "01X"),
        ({"kind": "eval", "model": "org/m", "dataset": "d", "device": "cuda:7"}, "/device", "cuda:7"),
        ({"kind": "allocation", "profile": "01X", "budget": {"weights": 1}}, "/profile", "01X"),
    ):
        answer = service.ask("POST", "/v1/jobs", body)
        assert_problem(answer, 422, pointer)
        assert name in answer.json["detail"]
    long = {"kind": "eval", "model": "org/m", "dataset": "d", "artifact": "aaa" + "ä" * 126}  # cut within a character
    assert "aaaää" in service.ask("POST", "/v1/jobs", long).json["errors"][0]["detail"]
    for method, target in (
        ("GET", "/v1/jobs/01X"), ("PATCH", "/v1/jobs/01X"), ("DELETE", "/v1/jobs/01X"), ("GET", "/v1/jobs/01X/rows"),
        ("GET", "/v1/jobs/01X/result"), ("GET", "/v1/jobs/01X/explain"), ("GET", "/v1/jobs/01X/events"),
        ("POST", "/v1/jobs/01X/cancel"), ("POST", "/v1/jobs/01X/pause"), ("POST", "/v1/jobs/01X/resume"),
        ("POST", "/v1/jobs/01X/retry"), ("GET", "/v1/datasets/nosuch"), ("DELETE", "/v1/datasets/nosuch"),
        ("GET", "/v1/models/no/such"), ("POST", "/v1/models/no/such/tokenize"),
    ):  # fmt: skip
        body = {"priority": 1} if method == "PATCH" else {"text": "a"} if "tokenize" in target else None
        answer = service.ask(method, target, body)
        assert_problem(answer, 404)
        assert target.split("/")[3] in answer.json["detail"]


def test_cursors_that_were_not_handed_out(service):
    service.put_dataset()
    job = service.submit("rows=1")["id"]
    for target in ("/v1/jobs?cursor=zzz", f"/v1/jobs/{job}/rows?cursor=zzz", "/v1/datasets?cursor=%2e%2e"):
        assert_problem(service.ask("GET", target), 422, "?cursor")
    for before_all_rows in ("-1.", "-1._", "0._token_kl"):  # those of the worker's own memory among them
        answer = service.ask("GET", f"/v1/jobs/{job}/rows?cursor={before_all_rows}")
        assert_problem(answer, 422, "?cursor")


def test_clients_that_leave_while_waiting(service):
    for _ in range(50):
        with service.dial() as s:
            s.sendall(b"GET /readyz HTTP/1.1\r\n" + HOST + b"\r\n")
