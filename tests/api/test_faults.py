"""What breaks: workers, the daemon, the disk. Nothing that was acknowledged is lost."""

import os
import re
import resource
import signal
import subprocess
import time

from conftest import Daemon


def test_a_lost_worker_is_replaced_and_the_job_goes_on_after_its_rows(daemon):
    job = daemon.submit("rows=4 crash=2", wait=20)
    assert job["state"] == "succeeded" and job["attempt"] == 2
    assert [row["made_in"] for row in daemon.rows(job["id"])] == [1, 1, 2, 2]


def test_three_lost_workers_fail_the_job_and_each_cause_is_told(daemon):
    job = daemon.submit("crash-always=1", wait=25)
    assert job["state"] == "failed" and job["error"]["code"] == "worker_lost"
    assert [a["attempt"] for a in job["error"]["attempts"]] == [1, 2, 3]
    assert all("status 3" in a["cause"] and "as told" in a["stderr"] for a in job["error"]["attempts"])
    assert daemon.submit(wait=10)["state"] == "succeeded"


def test_the_end_of_what_a_lost_worker_said_is_told_wherever_it_is_cut(daemon):
    job = daemon.submit("crash-always=0 babble", wait=25)
    for attempt in job["error"]["attempts"]:
        assert attempt["stderr"].endswith("ää.\ncrashing as told\n"), attempt


def test_a_worker_that_breaks_the_protocol_is_ended(daemon):
    job = daemon.submit("garbage", wait=25)
    assert job["state"] == "failed" and "protocol" in job["error"]["attempts"][0]["cause"]


def test_a_row_that_comes_twice_fails_the_job(daemon):
    job = daemon.submit("twice", wait=10)
    assert job["state"] == "failed" and "twice" in job["error"]["message"]
    assert [row["window"] for row in daemon.rows(job["id"])].count(0) == 1
    assert daemon.ask("GET", f"/v1/jobs/{job['id']}/result").status == 404


def test_an_error_of_the_worker_reaches_the_client(daemon):
    job = daemon.submit("fail", wait=10)
    assert job["state"] == "failed" and job["error"] == {"code": "invalid", "message": "told to fail"}


def test_a_daemon_that_was_killed_resumes_and_counts_no_attempt(daemon):
    running = daemon.submit("rows=10 slow=100")["id"]
    waiting = daemon.submit("rows=1")["id"]
    daemon.until(lambda: len(daemon.rows(running)) >= 2)
    daemon.kill()
    daemon.start()
    job = daemon.wait_for(running, "succeeded")
    assert job["attempt"] == 1 and [row["window"] for row in daemon.rows(running)] == list(range(10))
    assert daemon.wait_for(waiting, "succeeded")


def test_a_worker_that_was_killed_counts(daemon):
    id_ = daemon.submit("rows=10 slow=100")["id"]
    daemon.until(lambda: daemon.rows(id_))
    os.kill(daemon.worker_pid(), signal.SIGKILL)
    assert daemon.wait_for(id_, "succeeded")["attempt"] == 2


def test_sigterm_requeues_the_running_job_and_leaves_in_time(daemon):
    for label in ("rows=1000 slow=50", "hang"):
        id_ = daemon.submit(label)["id"]
        daemon.wait_for(id_, "running")
        began = time.monotonic()
        assert daemon.stop() == 0
        assert time.monotonic() - began < 10
        daemon.start()
        assert daemon.wait_for(id_, "running")["attempt"] == 1
        daemon.act(id_, "cancel")


def test_streams_end_with_an_event_when_the_daemon_stops(daemon):
    id_ = daemon.submit("hang")["id"]
    daemon.wait_for(id_, "running")
    stream = subprocess.Popen(["curl", "-sN", f"http://127.0.0.1:{daemon.port}/v1/jobs/{id_}/events"],
                              stdout=subprocess.PIPE, text=True)
    assert stream.stdout.readline() == "id: 1\n"
    daemon.stop()
    assert "event: shutdown" in stream.communicate(timeout=5)[0] and stream.returncode == 0
    daemon.start()


def test_a_full_disk_refuses_writes_serves_reads_and_loses_nothing(daemon):
    kept = daemon.submit(wait=10)["id"]
    running = daemon.submit("rows=20 slow=100")["id"]
    daemon.until(lambda: daemon.rows(running))
    daemon.fault.write_text("ENOSPC")
    answer = daemon.ask("POST", "/v1/jobs", {"kind": "eval", "model": "org/m", "dataset": "d"})
    assert answer.status == 507 and daemon.job(kept)["state"] == "succeeded"
    time.sleep(0.5)
    daemon.fault.unlink()
    assert daemon.wait_for(running, "succeeded", seconds=30)["attempt"] == 1
    assert len(daemon.rows(running)) == 20 and len(daemon.ask("GET", "/v1/jobs").json["items"]) == 2


def test_a_limit_on_the_size_of_files_refuses_writes_and_ends_nothing(daemon):
    pid, (_, hard) = daemon.process.pid, resource.getrlimit(resource.RLIMIT_FSIZE)
    kept = daemon.submit(wait=10)["id"]
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (4096, hard))
    assert daemon.ask("PUT", "/v1/datasets/large", "x" * 5000).status == 500
    answer = daemon.ask("POST", "/v1/jobs", {"kind": "eval", "model": "org/m", "dataset": "d"})
    assert answer.status == 500 and daemon.job(kept)["state"] == "succeeded"
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (hard, hard))
    assert daemon.submit(wait=10)["state"] == "succeeded"


def test_a_job_that_cannot_start_on_a_full_disk_is_tried_again_at_leisure(daemon):
    id_ = daemon.submit("rows=1")["id"]
    daemon.fault.write_text("ENOSPC")  # before its worker has said hello
    daemon.until(lambda: "full" in (daemon.devices()["cpu"]["last_error"] or ""))
    before = turns(daemon)
    time.sleep(1)
    assert turns(daemon) - before < 200
    daemon.fault.unlink()
    assert daemon.wait_for(id_, "succeeded")["attempt"] == 1


def turns(daemon):
    """How often its loop has waited."""
    status = open(f"/proc/{daemon.process.pid}/status", encoding="ascii").read()
    return int(re.search(r"^voluntary_ctxt_switches:\s*(\d+)", status, re.M)[1])


def test_a_disk_that_was_full_at_the_start_holds_nothing_up_once_it_is_not(daemon):
    id_ = daemon.submit("rows=4 slow=100")["id"]
    daemon.until(lambda: daemon.rows(id_))
    daemon.kill()
    daemon.fault.write_text("ENOSPC -wal")
    daemon.start()
    assert daemon.job(id_)["state"] == "running" and daemon.ask("GET", "/readyz").status == 507
    daemon.fault.unlink()
    assert daemon.wait_for(id_, "succeeded")["attempt"] == 1


class WithoutStreams(Daemon):
    def command(self):
        return ["sh", "-c", 'exec "$@" <&- >&-', "sh", *super().command()]


def test_a_daemon_that_is_started_without_standard_streams_works(tmp_path):
    daemon = WithoutStreams(tmp_path)
    try:
        daemon.put_dataset()
        assert daemon.submit("rows=2 crash=1", wait=20)["attempt"] == 2
    finally:
        status = daemon.stop()
    assert status == 0


def test_an_idle_worker_leaves(make_daemon):
    daemon = make_daemon(options=("--worker-idle", "1"))
    daemon.submit(wait=10)
    assert daemon.worker_pid()
    daemon.until(lambda: not daemon.worker_pid(), seconds=5)
    assert daemon.submit(wait=10)["state"] == "succeeded"


def refusal(daemon, *options):
    command = [str(part) for part in daemon.command()] + list(options)
    ended = subprocess.run(command, capture_output=True, text=True, timeout=10,
                           env=daemon.variables())
    assert ended.returncode == 1
    return ended.stderr


def test_what_cannot_be_served_is_refused_in_words(daemon, tmp_path):
    assert "another hsaqd is using the data folder" in refusal(daemon)
    assert "loopback" in refusal(daemon, "--listen", "0.0.0.0:0")
    taken = refusal(daemon, "--data", str(tmp_path / "other"), "--listen", f"127.0.0.1:{daemon.port}")
    assert "already in use" in taken and "--listen" in taken
    assert "HOST:PORT, such as" in refusal(daemon, "--listen", "8080")
    assert "Not a directory" in refusal(daemon, "--models", str(daemon.models / "org/m/config.json"))
    assert "is a model itself" in refusal(daemon, "--models", str(daemon.models / "org/m"))
    for unknown in (("--colour", "red"), ("--colour=red",), ("--colour",)):
        said = refusal(daemon, *unknown)
        assert "no option --colour" in said and "--help" in said and "takes a value" not in said
    assert "--max-body takes a value" in refusal(daemon, "--max-body")
    for too_small in ("0", "0GiB", "1023"):
        assert "--max-body: takes 1KiB or more" in refusal(daemon, "--max-body", too_small)
    newer = tmp_path / "newer"
    newer.mkdir()
    import sqlite3
    with sqlite3.connect(newer / "hsaqd.db") as database:
        database.execute("PRAGMA user_version = 999")
    assert "schema 999" in refusal(daemon, "--data", str(newer))
    (newer / "hsaqd.db").write_bytes(b"no database" * 100)
    assert "cannot open the database" in refusal(daemon, "--data", str(newer))
    daemon.fault.write_text("ENOSPC")
    assert "disk is full" in refusal(daemon, "--data", str(tmp_path / "fresh"))
    daemon.fault.unlink()
