"""One daemon for a whole test module, and what tests of the HTTP layer need beyond conftest's: `from service import
service` (with the fake worker) or `real_service` (with hsaq-worker)."""

import shutil
import socket

import pytest
from conftest import BUILD, FAKE_WORKER, ROOT, Daemon

FIXTURE = ROOT / "tests" / "fixture" / "tiny"


class Service(Daemon):
    def ask(self, method, target, body=None, headers=None):
        return super().ask(method, target, body, **(headers or {}))

    def dial(self):
        return socket.create_connection(("127.0.0.1", self.port), timeout=20)

    def raw(self, request):
        """Sends bytes, closes our side, returns all that comes back."""
        with self.dial() as s:
            s.sendall(request)
            s.shutdown(socket.SHUT_WR)
            return b"".join(iter(lambda: s.recv(65536), b""))


def serve(folder, worker):
    s = Service(folder, worker)
    yield s
    assert s.stop() == 0, (s.folder / "log").read_text()


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    yield from serve(tmp_path_factory.mktemp("service"), FAKE_WORKER)


@pytest.fixture(scope="module")
def real_service(tmp_path_factory):
    if not (BUILD / "hsaq-worker").exists():
        pytest.skip("hsaq-worker is not built")
    yield from serve(tmp_path_factory.mktemp("service"), BUILD / "hsaq-worker")


def add_model(service, name, source=FIXTURE):
    shutil.copytree(source, service.models / name)


def post(daemon, spec):
    """The id of a job that the daemon has taken."""
    answer = daemon.ask("POST", "/v1/jobs", spec)
    assert answer.status == 202, answer.body
    return answer.json["id"]


def result_of(daemon, id_):
    assert daemon.wait_for(id_, "succeeded", "failed")["state"] == "succeeded", daemon.job(id_)
    return daemon.ask("GET", f"/v1/jobs/{id_}/result").json


def assert_problem(answer, status, pointer=None):
    assert answer.status == status, answer.body
    assert answer.headers["Content-Type"] == "application/problem+json"
    problem = answer.json
    assert set(problem) == {"type", "title", "status", "detail", "instance", "errors"}
    assert problem["status"] == status and problem["detail"]
    if pointer is not None:
        assert pointer in [e["pointer"] for e in problem["errors"]], problem
