"""A daemon of our own for a test module, and a small client: `from service import service`."""

import http.client
import json
import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BUILD = Path(os.environ.get("HSAQ_BUILD", ROOT / "build"))
if not BUILD.is_absolute():
    BUILD = ROOT / BUILD
FIXTURE = ROOT / "tests" / "data" / "tiny-llama"


class Answer:
    def __init__(self, response):
        self.status, self.headers, self.body = response.status, response.headers, response.read()

    @property
    def json(self):
        return json.loads(self.body)


class Service:
    def __init__(self, folder):
        self.folder = folder
        self.models = folder / "models"
        self.models.mkdir()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.log = open(folder / "log", "w+b")
        command = [BUILD / "hsaqd", "--listen", f"127.0.0.1:{self.port}", "--data", folder / "data"]
        self.process = subprocess.Popen(
            [*map(str, command), "--models", str(self.models)], stdout=self.log, stderr=subprocess.STDOUT
        )
        self.wait()

    def wait(self):
        for _ in range(200):
            if self.process.poll() is not None:
                raise RuntimeError((self.folder / "log").read_text())
            try:
                if self.ask("GET", "/healthz").status == 200:
                    return
            except OSError:
                time.sleep(0.05)
        raise RuntimeError("the daemon does not answer")

    def ask(self, method, target, body=None, headers=None):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            if isinstance(body, (dict, list)):
                body = json.dumps(body)
            connection.request(method, target, body, headers or {})
            return Answer(connection.getresponse())
        finally:
            connection.close()

    def dial(self):
        return socket.create_connection(("127.0.0.1", self.port), timeout=20)

    def raw(self, request):
        """Sends bytes, closes our side, returns all that comes back."""
        with self.dial() as s:
            s.sendall(request)
            s.shutdown(socket.SHUT_WR)
            return b"".join(iter(lambda: s.recv(65536), b""))

    def stop(self):
        self.process.terminate()
        try:
            assert self.process.wait(15) == 0, (self.folder / "log").read_text()
        finally:
            self.process.kill()
            self.log.close()


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    s = Service(tmp_path_factory.mktemp("service"))
    yield s
    s.stop()


def add_model(service, name, source=FIXTURE):
    if not source.exists():
        pytest.skip(f"the fixture model {source} is not there")
    shutil.copytree(source, service.models / name)


def assert_problem(answer, status, pointer=None):
    assert answer.status == status, answer.body
    assert answer.headers["Content-Type"] == "application/problem+json"
    problem = answer.json
    assert set(problem) == {"type", "title", "status", "detail", "instance", "errors"}
    assert problem["status"] == status and problem["detail"]
    if pointer is not None:
        assert pointer in [e["pointer"] for e in problem["errors"]], problem
