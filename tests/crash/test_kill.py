"""kill -9 of the daemon, of its worker, of both, at random moments over a running queue.

After every restart: nothing that was acknowledged is missing, no row is there twice, and at the end every result and
row equals, bit for bit, that of an undisturbed run. HSAQ_KILLS sets how many kills (10), HSAQ_SEED the moments (1)."""

import importlib.util
import os
import pathlib
import random
import signal
import time

HERE = pathlib.Path(__file__).resolve()
spec = importlib.util.spec_from_file_location("api_conftest", HERE.parents[1] / "api/conftest.py")
api = importlib.util.module_from_spec(spec)
spec.loader.exec_module(api)

KILLS = int(os.environ.get("HSAQ_KILLS", "10"))
JOBS = 4
WORKER = api.BUILD / "hsaq-worker"


class Workload:
    """With the real worker, profiles and evals of the tiny model; before it is built, rows of the fake one."""

    def __init__(self, folder):
        self.real = WORKER.exists()
        folder.mkdir()
        self.daemon = api.Daemon(folder, worker=WORKER if self.real else api.FAKE_WORKER)
        fixture = api.ROOT / "tests/fixture"
        if self.real:
            (self.daemon.models / "tiny").symlink_to(fixture / "tiny")
            self.daemon.stop()
            self.daemon.models = fixture
            self.daemon.start()
        self.daemon.put_dataset(text=(fixture / "heldout.txt").read_text())

    def submit(self, n):
        if not self.real:
            members = {"kind": "eval", "model": "org/m", "dataset": "d", "label": "rows=40 slow=30"}
        elif n % 2:
            members = {"kind": "profile", "model": "tiny",
                       "calibration": {"dataset": "d", "samples": 40 + n, "length": 128},
                       "candidates": [{"method": "rtn", "bits": [2, 3, 4], "group": 64}]}
        else:
            members = {"kind": "eval", "model": "tiny", "dataset": "d", "length": 128,
                       "uniform": {"method": "rtn", "bits": 2 + n, "group": 64}}
        answer = self.daemon.ask("POST", "/v1/jobs", members, Idempotency_Key=f"job-{n}")
        assert answer.status == 202
        return answer.json["id"]

    def outcome(self, id_):
        result = self.daemon.ask("GET", f"/v1/jobs/{id_}/result").json
        for name in ("tokens_per_second", "dataset", "model", "rows", "totals"):  # of this run: speed, folders, cached
            result.pop(name, None)
        rows = self.daemon.rows(id_)
        for row in rows:
            row.pop("made_in", None)
            row.pop("cached", None)
        return result, rows


def wait_for_all(daemon, ids):
    """Three lost workers fail a job, as they should: it is retried, and goes on after its rows."""
    for id_ in ids:
        job = daemon.wait_for(id_, "succeeded", "failed", seconds=120)
        while job["state"] == "failed":
            assert job["error"]["code"] == "worker_lost", job["error"]
            daemon.act(id_, "retry")
            job = daemon.wait_for(id_, "succeeded", "failed", seconds=120)


def kill(daemon, victim):
    pid = daemon.worker_pid() if victim != "daemon" else None
    if victim != "worker":
        daemon.kill()
    if pid:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
    if victim != "worker":
        daemon.start()


def test_killed_at_random_moments_nothing_is_lost_and_no_bit_differs(tmp_path):
    calm = Workload(tmp_path / "calm")
    ids = [calm.submit(n) for n in range(JOBS)]
    wait_for_all(calm.daemon, ids)
    expected = [calm.outcome(id_) for id_ in ids]
    calm.daemon.stop()

    dice = random.Random(int(os.environ.get("HSAQ_SEED", "1")))
    stormy = Workload(tmp_path / "stormy")
    daemon, batches, kept = stormy.daemon, [], {}
    for n in range(KILLS):
        if n % 5 == 0:
            batches.append([stormy.submit(k) for k in range(JOBS)] if n == 0 else
                           [daemon.ask("POST", "/v1/jobs", daemon.job(id_)["spec"]).json["id"] for id_ in batches[0]])
        time.sleep(dice.uniform(0.02, 0.8))
        ids = [id_ for batch in batches for id_ in batch]
        kept = {id_: daemon.rows(id_) for id_ in ids}
        kill(daemon, dice.choice(["daemon", "worker", "both"]))
        for id_ in ids:
            assert daemon.rows(id_)[: len(kept[id_])] == kept[id_]
    for batch in batches:
        wait_for_all(daemon, batch)
        for id_, (result, rows) in zip(batch, expected):
            assert stormy.outcome(id_) == (result, rows)
    assert stormy.submit(0) == batches[0][0]
    assert daemon.stop() == 0
