"""What every path has in common: methods, parameters, negotiation, keep-alive, health, metrics."""

import json
import re
import subprocess

from conftest import BUILD
from service import assert_problem, service  # noqa: F401


def test_service_describes_itself(service):
    assert service.ask("GET", "/healthz").json == {"status": "ok"}
    assert service.ask("GET", "/readyz").json["status"] == "ready"
    assert service.ask("GET", "/v1/version").json["name"] == "hsaqd"
    document = service.ask("GET", "/openapi.yaml")
    assert document.headers["Content-Type"] == "application/yaml" and b"openapi: 3.1.0" in document.body
    assert service.ask("GET", "/v1/devices").json["items"]


def test_unknown_paths_and_methods(service):
    assert_problem(service.ask("GET", "/v2/jobs"), 404)
    answer = service.ask("POST", "/v1/datasets/a", "x")
    assert_problem(answer, 405)
    assert answer.headers["Allow"] == "PUT, GET, HEAD, DELETE"
    misspelt = service.ask("GET", "/v1/cache?modle=x")
    assert_problem(misspelt, 422, "?modle")
    assert misspelt.json["detail"] == "?modle: unknown parameter; this path takes: model"
    assert service.ask("GET", "/v1/version?x").json["detail"].endswith("takes: none")
    assert service.ask("GET", "/v1/jobs?limit=0").json["detail"] == "?limit: must be between 1 and 500"


def test_unknown_parameters_are_refused_everywhere(service):
    """Before anything is done: a DELETE must not be of more than was meant."""
    described = subprocess.run([BUILD / "hsaqd", "--describe"], check=True, capture_output=True).stdout
    service.put_dataset()
    job = service.submit("rows=1")["id"]
    service.wait_for(job, "succeeded")
    for route in json.loads(described)["routes"]:
        path = re.sub(r"{.*?}", job if "jobs" in route["path"] else "d", route["path"])
        body = None if route["method"] in ("GET", "DELETE") else "{}"
        assert_problem(service.ask(route["method"], path + "?surprise=1", body), 422, "?surprise")
    assert service.ask("GET", "/v1/datasets/d").status == 200 and service.job(job)["state"] == "succeeded"
    assert service.ask("GET", "/v1/version?").status == 200


def test_head_is_get_without_a_body(service):
    get, head = service.ask("GET", "/v1/version"), service.ask("HEAD", "/v1/version")
    assert head.status == 200 and head.body == b""
    assert head.headers["Content-Length"] == get.headers["Content-Length"]


def test_accept_is_honoured(service):
    assert_problem(service.ask("GET", "/v1/models", headers={"Accept": "image/png"}), 406)
    assert service.ask("GET", "/v1/models", headers={"Accept": "text/html, */*;q=0.1"}).status == 200


def test_metrics_count_requests(service):
    service.ask("GET", "/v1/models")
    text = service.ask("GET", "/metrics").body.decode()
    assert 'hsaqd_http_requests_total{route="listModels",status="200"}' in text
    assert 'hsaqd_jobs{state="queued"} 0' in text
    assert "process_resident_memory_bytes" in text


def test_pages_of_other_origins_are_refused(service):
    assert_problem(service.ask("GET", "/v1/jobs", headers={"Host": "evil.example"}), 421)
    assert_problem(service.ask("GET", "/v1/jobs", headers={"Origin": "https://evil.example"}), 403)


def test_one_connection_carries_many_requests(service):
    with service.dial() as s:
        s.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n" * 50)
        seen = b""
        while seen.count(b'{"status":"ok"}') < 50:
            data = s.recv(65536)
            assert data
            seen += data
