"""Event streams: whole, resumable, in two formats, and they end with their job."""

import json

import pytest

from service import assert_problem, service  # noqa: F401


@pytest.fixture(scope="module")
def ended_job(service):
    service.put_dataset()
    job = service.submit("rows=2")["id"]
    service.wait_for(job, "succeeded")
    return job


def events(text):
    out = []
    for block in text.decode().split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.splitlines() if ": " in line and line[0] != ":")
        if lines:
            out.append((int(lines.get("id", 0)), lines["event"], json.loads(lines["data"])))
    return out


def test_a_job_is_told_from_the_first_event_to_the_last(service, ended_job):
    answer = service.ask("GET", f"/v1/jobs/{ended_job}/events")
    assert answer.headers["Content-Type"].startswith("text/event-stream")
    told = [e for e in events(answer.body) if e[0]]
    assert [e[0] for e in told] == list(range(1, len(told) + 1)) and len(told) >= 2


def test_streams_resume(service, ended_job):
    told = [e for e in events(service.ask("GET", f"/v1/jobs/{ended_job}/events").body) if e[0]]
    target = f"/v1/jobs/{ended_job}/events"
    assert [e for e in events(service.ask("GET", target + "?after=1").body) if e[0]] == told[1:]
    assert [e for e in events(service.ask("GET", target, headers={"Last-Event-ID": "1"}).body) if e[0]] == told[1:]
    assert_problem(service.ask("GET", target, headers={"Last-Event-ID": "x"}), 422)
    assert_problem(service.ask("GET", target + "?after=-1"), 422, "?after")


def test_ndjson_tells_the_same(service, ended_job):
    target = f"/v1/jobs/{ended_job}/events"
    answer = service.ask("GET", target, headers={"Accept": "application/x-ndjson"})
    lines = [json.loads(line) for line in answer.body.splitlines()]
    told = [(e["id"], e["event"], e["data"]) for e in lines if e.get("id")]
    assert told == [e for e in events(service.ask("GET", target).body) if e[0]]


def test_all_jobs_share_a_stream(service, ended_job):
    with service.dial() as s:
        s.sendall(b"GET /v1/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        seen = b""
        while ended_job.encode() not in seen:
            seen += s.recv(65536)
    assert_problem(service.ask("GET", "/v1/jobs/01ARZ3NDEKTSV4RRFFQ69G5FAV/events"), 404)


def test_who_has_ids_of_data_that_were_replaced_hears_what_comes(service):
    service.put_dataset()
    with service.dial() as s:
        s.sendall(b"GET /v1/events HTTP/1.1\r\nHost: localhost\r\nLast-Event-ID: 1000000\r\n\r\n")
        assert s.recv(12) == b"HTTP/1.1 200"
        job = service.submit("rows=1")["id"]
        service.wait_for(job, "succeeded")
        s.settimeout(5)
        told = b""
        while b'"state":"succeeded"' not in told:
            told += s.recv(65536)
        assert job.encode() in told


def test_many_streams_at_once(service):
    sockets = [service.dial() for _ in range(300)]
    for s in sockets:
        s.sendall(b"GET /v1/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
    for s in sockets:
        assert s.recv(12) == b"HTTP/1.1 200"
    assert service.ask("GET", "/healthz").status == 200
    for s in sockets:
        s.close()
