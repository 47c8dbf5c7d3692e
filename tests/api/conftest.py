"""The `daemon` fixture: hsaqd on a free port with a data folder of its own and the fake worker."""

import http.client
import json
import os
import pathlib
import re
import signal
import subprocess
import time

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
BUILD = ROOT / os.environ.get("HSAQ_BUILD", "build")
FAKE_WORKER = ROOT / "tests/api/fake_worker.py"


class Answer:
    def __init__(self, response):
        self.status, self.headers, self.body = response.status, response.headers, response.read()

    @property
    def json(self):
        return json.loads(self.body)


class Daemon:
    def __init__(self, folder, worker=FAKE_WORKER, options=(), cards=0, environment=None):
        self.folder, self.data = folder, folder / "data"
        self.models, self.fault = folder / "models", folder / "fault"
        (self.models / "org/m").mkdir(parents=True, exist_ok=True)
        (self.models / "org/m/config.json").write_text("{}")
        self.worker, self.options = worker, options
        self.cards, self.environment = cards, environment or {}
        self.process = None
        self.start()

    def command(self):
        return [BUILD / "hsaqd", "--listen", "127.0.0.1:0", "--data", self.data, "--models", self.models,
                "--worker", self.worker, *self.options]

    def variables(self):
        return {**os.environ, "HSAQD_TEST_FAULT": str(self.fault), "FAKE_CARDS": str(self.cards), **self.environment}

    def start(self):
        self.data.mkdir(exist_ok=True)
        (self.data / "address").unlink(missing_ok=True)
        with open(self.folder / "log", "ab") as log:
            self.process = subprocess.Popen([str(part) for part in self.command()], stderr=log,
                                            env=self.variables())
        self.until(lambda: (self.data / "address").exists() and (self.data / "address").read_text().endswith("\n"))
        self.port = int((self.data / "address").read_text().rpartition(":")[2])

    def kill(self):
        self.process.kill()
        self.process.wait()

    def stop(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=12)

    def until(self, condition, seconds=20):
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            value = condition()
            if value:
                return value
            assert self.process.poll() is None, (self.folder / "log").read_text()
            time.sleep(0.02)
        raise TimeoutError((self.folder / "log").read_text())

    def ask(self, method, target, body=None, **headers):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            text = json.dumps(body) if isinstance(body, (dict, list)) else body
            text = text.encode() if isinstance(text, str) else text
            connection.request(method, target, text, {k.replace("_", "-"): v for k, v in headers.items()})
            return Answer(connection.getresponse())
        finally:
            connection.close()

    def put_dataset(self, name="d", text="some text\n"):
        assert self.ask("PUT", f"/v1/datasets/{name}", text).status in (200, 201)

    def submit(self, label="", wait=0, **members):
        spec = {"kind": "eval", "model": "org/m", "dataset": "d", **members}
        if label:
            spec["label"] = label
        answer = self.ask("POST", "/v1/jobs", spec, Prefer=f"wait={wait}") if wait else self.ask("POST", "/v1/jobs", spec)
        assert answer.status == 202, answer.body
        return answer.json

    def job(self, id_):
        return self.ask("GET", f"/v1/jobs/{id_}").json

    def wait_for(self, id_, *states, seconds=20):
        return self.until(lambda: (job := self.job(id_))["state"] in states and job, seconds)

    def act(self, id_, action):
        return self.ask("POST", f"/v1/jobs/{id_}/{action}")

    def rows(self, id_):
        return self.ask("GET", f"/v1/jobs/{id_}/rows").json["items"]

    def events(self, id_, **headers):
        """Of a job that ends: (id, type, data) of each."""
        text = self.ask("GET", f"/v1/jobs/{id_}/events", **headers).body.decode()
        return [(int(i) if i else None, t, json.loads(d))
                for i, t, d in re.findall(r"(?:id: (\d+)\n)?event: (\w+)\ndata: (.*)\n\n", text)]

    def devices(self):
        """Those of numeric jobs, by name."""
        return {d["name"]: d for d in self.ask("GET", "/v1/devices").json["items"] if d["lane"] == "device"}

    def worker_pid(self):
        return next((d["pid"] for d in self.ask("GET", "/v1/devices").json["items"] if d["lane"] == "device"), None)


@pytest.fixture
def daemon(tmp_path):
    d = Daemon(tmp_path)
    d.put_dataset()
    yield d
    d.stop()


@pytest.fixture
def make_daemon(tmp_path):
    made = []

    def make(**keys):
        made.append(Daemon(tmp_path, **keys))
        made[-1].put_dataset()
        return made[-1]

    yield make
    for d in made:
        d.stop()
