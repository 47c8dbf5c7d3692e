"""kill -9 of the daemon, of a worker, of both, at random moments over a queue that never runs dry.

What must hold, and how it shows:
- nothing acknowledged is missing: every row, job and 202 that was seen before a kill is there after it, also those of
  a client that submits while the kills go on and repeats what was not answered (once accepted, once there);
- no row is computed twice: a row that came twice would fail its job (the table of rows refuses it), and a profile's
  own count says that it resumed from at least the rows that were seen before its last start;
- no result and no artifact differs by a bit from an undisturbed run, but for what the API document calls of this run.

HSAQ_KILLS sets how many kills (50), HSAQ_SEED the moments (1)."""

import importlib.util
import itertools
import os
import pathlib
import random
import re
import signal
import threading
import time

import pytest

HERE = pathlib.Path(__file__).resolve()
spec = importlib.util.spec_from_file_location("api_conftest", HERE.parents[1] / "api/conftest.py")
api = importlib.util.module_from_spec(spec)
spec.loader.exec_module(api)

KILLS = int(os.environ.get("HSAQ_KILLS", "50"))
FIXTURE = api.ROOT / "tests/fixture"
SECONDS = 120


def profile(candidates, samples=32):
    return {"kind": "profile", "model": "tiny", "candidates": candidates,
            "calibration": {"dataset": "d", "samples": samples, "length": 128}}


def evaluation(**recipe):
    return {"kind": "eval", "model": "tiny", "dataset": "d", "length": 128, "windows": 32, **recipe}


def sweep(**what):
    return {"kind": "sweep", "model": "tiny", "dataset": "d", "length": 64, "windows": 4, "layers": "down", **what}


CALIBRATION = {"dataset": "d", "samples": 8, "length": 128}


def artifact(name, **recipe):
    return {"kind": "quantize", "model": "tiny", "name": name, **recipe}


AWQ_GPTQ = {"method": "awq+gptq", "bits": 4, "group": 64, "symmetric": True}


def allocation(profile_id, bits):
    return {"kind": "allocation", "profile": profile_id, "budget": {"average_bits": bits}}


class Service(api.Daemon):
    def __init__(self, folder):
        folder.mkdir()
        super().__init__(folder, worker=api.BUILD / "hsaq-worker", options=("--models", FIXTURE))
        self.artifacts = 0
        self.put_dataset(text=(FIXTURE / "heldout.txt").read_text())

    def post(self, body, key=None):
        answer = self.ask("POST", "/v1/jobs", body, **({"Idempotency_Key": key} if key else {}))
        assert answer.status == 202, answer.body
        return answer.json["id"]

    def submit_batch(self):
        """Without the cache, so that its profiles compute."""
        assert self.ask("DELETE", "/v1/cache").status == 200
        hqq = self.post(profile([{"method": "hqq", "bits": [2, 4], "group": 64},
                                 {"method": "hqq", "bits": 3, "group": 0, "zero": "integer"}]))
        rtn = self.post(profile([{"method": "rtn", "bits": [2, 3, 4], "group": 64}]))
        mixed = self.post(allocation(hqq, 3.1))
        self.artifacts += 1
        return [hqq, rtn, mixed, self.post(evaluation(allocation=mixed)),
                self.post(evaluation(uniform={"method": "hqq", "bits": 3, "group": 64})),
                self.post(evaluation(uniform={"method": "rtn", "bits": 2, "group": 64})),
                self.post(evaluation(uniform={"method": "gptq", "bits": 3, "group": 64}, calibration=CALIBRATION)),
                self.post(evaluation(uniform={"method": "awq", "bits": 3, "group": 64}, calibration=CALIBRATION)),
                self.post(evaluation(uniform={"method": "rtn", "bits": 3, "group": 64}, calibration=CALIBRATION,
                                     refine=True)),
                self.post(sweep(candidate={"method": "rtn", "bits": 3, "group": 64})),
                self.post(artifact(f"plain-{self.artifacts}", allocation=mixed)),
                self.post(artifact(f"made-{self.artifacts}", uniform=AWQ_GPTQ, calibration=CALIBRATION))]

    def keep_busy(self, batches):
        """Another batch when the last one is done; what failed, as its workers were lost, goes on."""
        states = {id_: self.job(id_)["state"] for id_ in batches[-1]} if batches else {}
        for id_ in (i for i, state in states.items() if state == "failed"):
            self.act(id_, "retry")
        if all(state == "succeeded" for state in states.values()):
            batches.append(self.submit_batch())

    def version(self, id_):
        """Grows by one with every transition."""
        return int(self.ask("GET", f"/v1/jobs/{id_}").headers["ETag"].strip('"').split(".")[0])

    def all_rows(self, id_):
        text = self.ask("GET", f"/v1/jobs/{id_}/rows?format=ndjson").body.decode()
        return text.splitlines()

    def finish(self, id_):
        """Three lost workers fail a job, as they should: it is retried, and goes on after its rows."""
        job = self.wait_for(id_, "succeeded", "failed", seconds=SECONDS)
        while job["state"] == "failed":
            assert job["error"]["code"] in ("worker_lost", "dependency_failed"), job["error"]
            if job["error"]["code"] == "dependency_failed":
                self.finish(job["error"]["job"])
            self.act(id_, "retry")
            job = self.wait_for(id_, "succeeded", "failed", seconds=SECONDS)
        return job

    def outcome(self, id_):
        """Without what is of this run: names of jobs, speed, and how the rows were come by."""
        result = self.ask("GET", f"/v1/jobs/{id_}/result").json
        folder = pathlib.Path(result["path"]) if "path" in result else None
        for member in ("rows", "tokens_per_second", "passes", "profile", "name", "path"):
            result.pop(member, None)
        if "refined" in result:
            del result["refined"]["seconds"]
        files = {file.name: file.read_bytes() for file in folder.iterdir()} if folder else None
        return result, files, [re.sub(r'"seconds":[^,}]*', "", row.replace('"cached":true', '"cached":false'))
                               for row in self.all_rows(id_)]


def kill(daemon, victim):
    workers = [d["pid"] for d in daemon.ask("GET", "/v1/devices").json["items"] if d["pid"]] if victim != "daemon" else []
    if victim != "worker":
        daemon.kill()
    for pid in workers:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
    if victim != "worker":
        daemon.start()


class Client(threading.Thread):
    """Submits allocations all the while: leaves before each answer, then repeats under its key until acknowledged."""

    def __init__(self, daemon):
        super().__init__(daemon=True)
        self.service, self.ids, self.over = daemon, [], threading.Event()
        self.profile = daemon.post(profile([{"method": "rtn", "bits": [2, 3], "group": 64}], samples=2))
        daemon.finish(self.profile)
        self.start()

    def leave_before_answer(self, spec, key):
        connection = api.http.client.HTTPConnection("127.0.0.1", self.service.port, timeout=30)
        connection.request("POST", "/v1/jobs", api.json.dumps(spec), {"Idempotency-Key": key})
        connection.close()

    def submit(self, n):
        spec = dict(allocation(self.profile, 2.5), label="client", priority=-1)
        while not self.over.is_set():
            try:
                self.leave_before_answer(spec, f"client-{n}")
                self.ids.append(self.service.post(spec, key=f"client-{n}"))
                return
            except (OSError, api.http.client.HTTPException):
                time.sleep(0.02)

    def run(self):
        for n in itertools.count():
            self.submit(n)
            if self.over.wait(0.1):
                return

    def check(self):
        """Each acknowledged once, each there once."""
        every, cursor = [], ""
        while cursor is not None:
            page = self.service.ask("GET", f"/v1/jobs?kind=allocation&limit=500{cursor and '&cursor=' + cursor}").json
            every += [job["id"] for job in page["items"] if job["label"] == "client"]
            cursor = page["next"]
        assert len(set(self.ids)) == len(self.ids) > 0 and set(self.ids) <= set(every)
        assert len(every) <= len(self.ids) + 1  # the last may have been accepted and not answered


class Seen:
    """What clients were told of a job at some moment: its version and rows."""

    def __init__(self, daemon, id_):
        self.version, self.rows = daemon.version(id_), daemon.all_rows(id_)

    def check(self, daemon, id_):
        assert daemon.version(id_) >= self.version
        assert set(self.rows) <= set(daemon.all_rows(id_))

    def check_resumed(self, daemon, id_):
        """Requeued, started and succeeded since: then these rows were not computed again."""
        counts = daemon.ask("GET", f"/v1/jobs/{id_}/result").json.get("rows")
        if counts and daemon.version(id_) >= self.version + 3:
            assert counts["resumed"] >= len(self.rows), counts


@pytest.fixture
def make_service(tmp_path):
    made = []

    def make(name):
        made.append(Service(tmp_path / name))
        return made[-1]

    yield make
    for service in made:
        service.kill()


def test_killed_at_random_moments_nothing_is_lost_and_no_bit_differs(make_service):
    calm = make_service("calm")
    expected = []
    for id_ in calm.submit_batch():
        calm.finish(id_)
        expected.append(calm.outcome(id_))
    assert calm.stop() == 0

    dice = random.Random(int(os.environ.get("HSAQ_SEED", "1")))
    daemon = make_service("stormy")
    client, batches, seen = Client(daemon), [], {}
    for _ in range(KILLS):
        daemon.keep_busy(batches)
        time.sleep(dice.uniform(0.02, dice.choice([0.2, 0.6, 1.5])))
        now = {id_: Seen(daemon, id_) for id_ in batches[-1]}
        kill(daemon, dice.choice(["daemon", "worker", "both"]))
        for id_, what in now.items():
            what.check(daemon, id_)
        seen.update(now)
    client.over.set()
    client.join()
    for id_ in itertools.chain(*batches, client.ids):
        daemon.finish(id_)
    for batch in batches:
        for id_, outcome in zip(batch, expected):
            assert daemon.outcome(id_) == outcome
            seen[id_].check_resumed(daemon, id_)
    client.check()
    assert daemon.stop() == 0
    print(f"{KILLS} kills, {len(batches)} batches, {len(client.ids)} jobs of the client")


def shards(daemon, name):
    return sum(1 for _ in (daemon.data / f"artifacts/.{name}.partial").glob("model-*.safetensors"))


@pytest.mark.parametrize("uniform", [AWQ_GPTQ, {"method": "gptq", "bits": 3, "group": 64, "sequential": False}],
                         ids=["sequential", "static"])
def test_an_artifact_killed_after_any_block_has_the_same_bytes(make_service, uniform):
    recipe = {"uniform": uniform, "calibration": dict(CALIBRATION, samples=24)}
    daemon, dice = make_service("service"), random.Random(int(os.environ.get("HSAQ_SEED", "1")))
    whole = daemon.post(artifact("whole", **recipe))
    daemon.finish(whole)
    interrupted = 0
    for block in range(6):
        name = f"killed-{block}"
        id_ = daemon.post(artifact(name, **recipe))
        daemon.until(lambda: shards(daemon, name) > block or daemon.job(id_)["state"] == "succeeded")
        time.sleep(dice.uniform(0, 0.05))
        kill(daemon, ("worker", "daemon", "both")[block % 3])
        daemon.finish(id_)
        assert daemon.outcome(id_) == daemon.outcome(whole)
        interrupted += daemon.version(id_) > daemon.version(whole)
        assert not (daemon.data / f"artifacts/.{name}.partial").exists()
    assert interrupted >= 3  # the last may have been done before the kill
    assert daemon.stop() == 0


def phase(daemon, id_):
    progress = daemon.job(id_)["progress"] or {}
    return progress.get("phase"), progress.get("done", 0)


def test_an_artifact_killed_while_it_is_refined_has_the_same_bytes(make_service):
    """In its walk of the reference, in its steps, and when the scales are there: the shards get them one by one."""
    recipe = {"uniform": {"method": "gptq", "bits": 3, "group": 64, "guided": True},
              "calibration": dict(CALIBRATION, samples=16)}
    daemon, dice = make_service("service"), random.Random(int(os.environ.get("HSAQ_SEED", "1")))
    whole = daemon.post(artifact("whole", **recipe))
    daemon.finish(whole)
    assert daemon.ask("GET", f"/v1/jobs/{whole}/result").json["refined"]["default"]
    interrupted = 0
    for n in range(8):
        name, moment = f"killed-{n}", ("reference", "refine", "refine", "scales")[n % 4]
        scales = daemon.data / f"artifacts/.{name}.partial/.scales.safetensors"
        id_ = daemon.post(artifact(name, **recipe))
        daemon.until(lambda: daemon.job(id_)["state"] == "succeeded" or
                     (scales.exists() if moment == "scales" else phase(daemon, id_)[0] == moment))
        time.sleep(dice.uniform(0, 0.02 if moment == "scales" else 0.5))
        kill(daemon, ("worker", "daemon", "both")[n % 3])
        daemon.finish(id_)
        assert daemon.outcome(id_) == daemon.outcome(whole)
        interrupted += daemon.version(id_) > daemon.version(whole)
        assert not (daemon.data / f"artifacts/.{name}.partial").exists()
    assert interrupted >= 4  # what follows the scales may have been done before the kill
    assert daemon.stop() == 0
