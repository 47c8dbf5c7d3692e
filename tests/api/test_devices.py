"""Several devices: what there is, which job runs where, and that what happens on one leaves the others alone.
The fake worker pretends to have cards."""

import os
import signal
import sqlite3
import subprocess
import time

import pytest

LONG = "rows=1000 slow=50"
CARDS = ["cuda:0", "cuda:1"]


@pytest.fixture
def two(make_daemon):
    return make_daemon(cards=2)


def running_on(daemon, *jobs):
    return [daemon.wait_for(id_, "running")["device"] for id_ in jobs]


def reasons(daemon, id_):
    return {r["code"]: r for r in daemon.ask("GET", f"/v1/jobs/{id_}/explain").json["reasons"]}


def log_of(daemon):
    return (daemon.folder / "log").read_text()


def refusal(daemon, *options, cards=2):
    """What a second daemon says that cannot start."""
    command = [str(part) for part in daemon.command()] + list(options)
    ended = subprocess.run(command, capture_output=True, text=True, timeout=10,
                           env={**daemon.variables(), "FAKE_CARDS": str(cards)})
    assert ended.returncode == 1
    return ended.stderr


# ---- which devices there are ----


def test_every_card_is_used_and_described_before_a_worker_runs(two):
    items = two.ask("GET", "/v1/devices").json["items"]
    assert [(d["name"], d["lane"]) for d in items] == [("cuda:0", "device"), ("cuda:1", "device"), ("cpu", "cpu")]
    assert [d["hardware"] for d in items] == ["card 0", "card 1", "a script"]
    assert items[1]["memory"] == 1 << 34
    assert {(d["state"], d["worker"], d["pid"], d["job"]) for d in items} == {("idle", "none", None, None)}


@pytest.mark.parametrize("option, names", [
    ("auto", CARDS), ("cuda", CARDS), ("cpu", ["cpu"]), ("cuda:1", ["cuda:1"]), ("cuda:1,cuda:0", CARDS[::-1]),
])
def test_the_option_chooses(make_daemon, option, names):
    daemon = make_daemon(cards=2, options=("--device", option))
    assert list(daemon.devices()) == names
    job = daemon.submit("rows=1", wait=10)
    assert job["state"] == "succeeded" and job["device"] == names[0]


@pytest.mark.parametrize("value", ['"cuda:1,cuda:0"', '["cuda:1", "cuda:0"]'])
def test_the_file_chooses_and_the_command_line_wins(make_daemon, tmp_path, value):
    file = tmp_path / "config.json"
    file.write_text('{"device": %s, "vram-limit": "3GiB"}' % value)
    daemon = make_daemon(cards=2, options=("--config", file))
    assert list(daemon.devices()) == CARDS[::-1]
    daemon.stop()
    daemon.options = ("--config", file, "--device", "cuda:0")
    daemon.start()
    assert list(daemon.devices()) == ["cuda:0"]
    daemon.submit("rows=1", wait=10)
    assert daemon.devices()["cuda:0"]["hardware"] == f"a script within {3 << 30} bytes"


def test_the_limit_on_gpu_memory_is_for_gpus(make_daemon):
    daemon = make_daemon(cards=2, options=("--device", "cpu", "--vram-limit", "3GiB"))
    assert daemon.submit("rows=1", wait=10)["device"] == "cpu"
    assert daemon.devices()["cpu"]["hardware"] == "a script"


def test_a_device_that_is_not_there_is_refused_in_words(daemon):
    assert "there is no device cuda:2; there is cpu, cuda:0, cuda:1" in refusal(daemon, "--device", "cuda:0,cuda:2")
    assert "cuda:0 is named twice" in refusal(daemon, "--device", "cuda:0,cuda:1,cuda:0")
    for wrong in ("gpu", "cuda:", "cuda:x", "cuda:01", "cuda:0,", "", "cpu,cuda:0", "cuda:1000", "CUDA:0", "cuda:-1"):
        assert "is no device" in refusal(daemon, "--device", wrong), wrong
    for named in ("cuda", "cuda:0"):
        assert f"{named} cannot be used: nobody has put a card in" in refusal(daemon, "--device", named, cards=0)
    said = refusal(daemon, "--device", "cuda", cards="fail")
    assert "hsaq-worker devices ended with status 1" in said and "fake_worker.py devices" in said


@pytest.mark.parametrize("cards", ["fail", "garbage", "0"])
def test_a_worker_that_cannot_say_leaves_the_cpu(make_daemon, cards):
    daemon = make_daemon(cards=cards)
    assert list(daemon.devices()) == ["cpu"] and "no GPU is used" in log_of(daemon)
    assert daemon.submit("rows=1", wait=10)["device"] == "cpu"


# ---- which job runs where ----


def test_jobs_run_side_by_side(two):
    jobs = [two.submit(LONG)["id"] for _ in range(3)]
    places = running_on(two, *jobs[:2])
    assert set(places) == set(CARDS)  # the worker that was up first took the first job
    assert two.job(jobs[2])["state"] == "queued"
    shown = two.devices()
    for id_, card in zip(jobs, places):
        assert (shown[card]["state"], shown[card]["worker"], shown[card]["job"]) == ("busy", "ready", id_)
    assert len({d["pid"] for d in shown.values()}) == 2
    metrics = two.ask("GET", "/metrics").body.decode()
    for card in CARDS:
        assert f'hsaqd_device_busy{{device="{card}",lane="device"}} 1\n' in metrics
        assert f'hsaqd_worker_up{{device="{card}",lane="device"}} 1\n' in metrics
    assert 'hsaqd_device_busy{device="cpu",lane="cpu"} 0\n' in metrics
    assert set(reasons(two, jobs[2])) == {"busy"}
    two.act(jobs[1], "cancel")
    assert running_on(two, jobs[2]) == [places[1]]


def test_one_job_starts_one_worker(two):
    for _ in range(3):
        assert two.submit("rows=1", wait=10)["device"] == "cuda:0"
    assert two.devices()["cuda:1"]["worker"] == "none"


def test_a_job_runs_where_it_asks_to(two):
    first, second = (two.submit(LONG, device="cuda:1")["id"] for _ in range(2))
    assert running_on(two, first) == ["cuda:1"]
    explained = two.ask("GET", f"/v1/jobs/{second}/explain").json
    assert explained["position"] == 1 and [r["job"] for r in explained["reasons"]] == [first]
    free = two.submit(LONG, device="auto")["id"]
    assert running_on(two, free) == ["cuda:0"]
    behind = two.submit("rows=1")["id"]
    assert two.ask("GET", f"/v1/jobs/{behind}/explain").json["position"] == 2
    assert two.ask("GET", f"/v1/jobs/{second}/explain").json["position"] == 1
    two.act(free, "cancel")
    assert two.wait_for(behind, "succeeded")["device"] == "cuda:0"  # past the older one, which may not run there
    two.act(first, "cancel")
    assert running_on(two, second) == ["cuda:1"]


def test_a_device_that_no_job_can_have_is_refused(two):
    two.submit(wait=10)
    spec = {"kind": "eval", "model": "org/m", "dataset": "d"}
    for device in ("cuda:2", "cuda", "cpu", "cuda:00"):
        answer = two.ask("POST", "/v1/jobs", {**spec, "device": device})
        assert answer.status == 422 and "cuda:0, cuda:1" in answer.json["detail"], answer.body
        assert [e["pointer"] for e in answer.json["errors"]] == ["/device"]
    profile = {"kind": "profile", "model": "org/m", "candidates": [{"method": "rtn", "bits": 4}],
               "calibration": {"dataset": "d"}}
    id_ = two.ask("POST", "/v1/jobs", profile, Prefer="wait=10").json["id"]
    allocation = {"kind": "allocation", "profile": id_, "budget": {"average_bits": 3.3}}
    answer = two.ask("POST", "/v1/jobs", {**allocation, "device": "cuda:0"})
    assert answer.status == 422 and "runs on the cpu" in answer.json["detail"]
    for device in ("cpu", "auto"):
        answer = two.ask("POST", "/v1/jobs", {**allocation, "device": device}, Prefer="wait=10")
        assert answer.json["state"] == "succeeded" and answer.json["device"] == "cpu"


def test_priority_holds_across_lanes(two):
    blockers = [two.submit(LONG)["id"] for _ in range(2)]
    running_on(two, *blockers)
    low, middle, high = (two.submit("rows=4 slow=100", priority=p)["id"] for p in (0, 3, 7))
    for id_, place in ((high, 1), (middle, 2), (low, 3)):
        assert two.ask("GET", f"/v1/jobs/{id_}/explain").json["position"] == place
    for id_ in blockers:
        two.act(id_, "cancel")
    ended = {id_: two.wait_for(id_, "succeeded") for id_ in (low, middle, high)}
    assert ended[low]["started_at"] > max(ended[high]["started_at"], ended[middle]["started_at"])
    assert {ended[high]["device"], ended[middle]["device"]} == set(CARDS)


# ---- jobs that are split over all devices ----


def started(daemon, id_):
    return daemon.job(id_)["started_at"]


def test_a_split_job_has_every_device(two):
    split = two.submit(LONG, devices="all")["id"]
    assert running_on(two, split) == ["all"]
    shown = two.devices()
    assert {(d["state"], d["job"]) for d in shown.values()} == {("busy", split)} and list(shown) == CARDS
    assert len({d["pid"] for d in shown.values()}) == 1
    other = two.submit(LONG)["id"]
    assert reasons(two, other)["busy"]["job"] == split
    time.sleep(0.5)
    assert two.job(other)["state"] == "queued"
    two.act(split, "cancel")
    assert running_on(two, other)[0] in CARDS
    pids = {d["pid"] for d in two.devices().values()} - {None}
    assert len(pids) == 1 and not pids & {d["pid"] for d in shown.values()}  # the worker of both devices has left


def test_a_split_job_waits_for_what_runs_and_others_wait_for_it(two):
    alone = two.submit(LONG)["id"]
    running_on(two, alone)
    split, later = two.submit("rows=1", devices="all")["id"], two.submit("rows=1")["id"]
    time.sleep(0.5)
    assert {two.job(id_)["state"] for id_ in (split, later)} == {"queued"}
    assert reasons(two, split)["busy"]["job"] == alone
    assert set(reasons(two, later)) == {"queue"}
    sooner = two.submit("rows=1", priority=5)["id"]
    assert two.wait_for(sooner, "succeeded")["device"] in CARDS
    two.act(alone, "cancel")
    assert two.wait_for(split, "succeeded")["device"] == "all"
    assert two.wait_for(later, "succeeded")["device"] in CARDS
    assert started(two, sooner) < started(two, split) < started(two, later)


def test_split_jobs_follow_each_other_on_one_worker(two):
    jobs = [two.submit("rows=2", devices="all")["id"] for _ in range(5)]
    assert {two.wait_for(id_, "succeeded")["device"] for id_ in jobs} == {"all"}
    assert {d["workers_lost"] for d in two.devices().values()} == {0}


def test_split_and_other_jobs_take_turns(two):
    jobs = [two.submit("rows=2 slow=20", **({"devices": "all"} if i % 3 == 0 else {}))["id"] for i in range(12)]
    ended = [two.wait_for(id_, "succeeded") for id_ in jobs]
    assert [j["device"] == "all" for j in ended] == [i % 3 == 0 for i in range(12)]
    assert {j["attempt"] for j in ended} == {1}
    for split in ended[::3]:
        for job in ended:
            assert job is split or job["finished_at"] <= split["started_at"] or split["finished_at"] <= job["started_at"]


def test_a_lost_worker_of_all_devices_is_replaced(two):
    job = two.submit("rows=3 crash=1", devices="all", wait=15)
    assert (job["state"], job["attempt"], job["device"]) == ("succeeded", 2, "all")


def test_on_one_device_a_split_job_is_an_ordinary_one(two):
    blocker = two.submit(LONG)["id"]
    running_on(two, blocker)
    split = two.submit("rows=1", devices="all")["id"]
    two.act(blocker, "cancel")
    two.wait_for(split, "succeeded")
    blocker = two.submit(LONG)["id"]
    running_on(two, blocker)
    waiting = two.submit("rows=1", devices="all")["id"]
    two.stop()
    two.options = ("--device", "cuda:0")
    two.start()
    two.act(blocker, "cancel")
    assert two.wait_for(waiting, "succeeded")["device"] == "cuda:0"


def test_a_waiting_split_job_can_be_given_one_device(two):
    blocker = two.submit(LONG, device="cuda:0")["id"]
    running_on(two, blocker)
    split = two.submit("rows=1", devices="all")["id"]
    assert two.ask("PATCH", f"/v1/jobs/{split}", {"device": "cuda:1"}).status == 200
    assert two.wait_for(split, "succeeded")["device"] == "cuda:1"


def test_devices_exclude_a_device(two):
    two.submit(wait=10)
    spec = {"kind": "eval", "model": "org/m", "dataset": "d", "devices": "all"}
    for more in ({"device": "cuda:0"}, {"device": "auto"}, {"devices": "some"}):
        answer = two.ask("POST", "/v1/jobs", {**spec, **more})
        assert answer.status == 422 and [e["pointer"] for e in answer.json["errors"]] == ["/devices"], answer.body


def test_many_jobs_each_run_once(two):
    jobs = [two.submit("rows=2 slow=20")["id"] for _ in range(40)]
    ended = [two.wait_for(id_, "succeeded") for id_ in jobs]
    assert {j["device"] for j in ended} == set(CARDS) and {j["attempt"] for j in ended} == {1}
    for id_ in jobs:
        assert [d["state"] for _, t, d in two.events(id_) if t == "state"] == ["queued", "running", "succeeded"]


# ---- what happens on one leaves the others alone ----


@pytest.mark.parametrize("action, state", [("cancel", "cancelled"), ("pause", "paused")])
@pytest.mark.parametrize("label", [LONG, "hang"])
def test_a_job_stopped_on_one_leaves_the_other(two, action, state, label):
    stopped, other = two.submit(label, device="cuda:0")["id"], two.submit(LONG, device="cuda:1")["id"]
    running_on(two, stopped, other)
    pid = two.devices()["cuda:1"]["pid"]
    assert two.act(stopped, action).json["state"] == state
    rows = len(two.rows(other))
    two.until(lambda: len(two.rows(other)) > rows + 2)
    assert two.devices()["cuda:1"]["pid"] == pid and two.devices()["cuda:1"]["job"] == other
    assert two.devices()["cuda:0"]["state"] == "idle"


def test_a_paused_job_resumes_on_the_other_card_after_its_rows(two):
    id_ = two.submit("rows=8 slow=100")["id"]
    two.until(lambda: len(two.rows(id_)) >= 2)
    two.act(id_, "pause")
    kept, blocker = two.rows(id_), two.submit(LONG)["id"]
    assert running_on(two, blocker) == ["cuda:0"]
    two.act(id_, "resume")
    assert two.wait_for(id_, "succeeded")["device"] == "cuda:1"
    assert two.rows(id_)[: len(kept)] == kept and len(two.rows(id_)) == 8


def test_a_worker_killed_on_one_leaves_the_other(two):
    killed, other = two.submit("rows=30 slow=100", device="cuda:0")["id"], two.submit(LONG, device="cuda:1")["id"]
    running_on(two, killed, other)
    two.until(lambda: two.rows(killed))
    before = two.devices()
    os.kill(before["cuda:0"]["pid"], signal.SIGKILL)
    two.until(lambda: two.devices()["cuda:0"]["state"] == "down")
    assert two.wait_for(killed, "running")["attempt"] == 2
    after = two.devices()
    assert after["cuda:1"]["pid"] == before["cuda:1"]["pid"] and two.job(other)["attempt"] == 1
    assert [after[card]["workers_lost"] for card in CARDS] == [1, 0]


def test_a_broken_card_holds_up_only_those_who_insist_on_it(make_daemon):
    daemon = make_daemon(cards=2, environment={"FAKE_BROKEN": "cuda:0"})
    job = daemon.submit("rows=1", wait=10)
    assert job["state"] == "succeeded" and job["device"] == "cuda:1" and job["attempt"] == 1
    id_ = daemon.submit("rows=1", device="cuda:0")["id"]
    why = daemon.until(lambda: reasons(daemon, id_).get("worker_failing"))
    assert "started again soon" in why["detail"]
    assert daemon.devices()["cuda:0"]["state"] == "down"
    assert 'hsaqd_device_down{device="cuda:0",lane="device"} 1' in daemon.ask("GET", "/metrics").body.decode()
    assert [daemon.submit("rows=1", wait=10)["state"] for _ in range(3)] == ["succeeded"] * 3
    daemon.act(id_, "cancel")


def test_devices_that_do_not_open_together_hold_up_split_jobs_alone(make_daemon):
    daemon = make_daemon(cards=2, environment={"FAKE_BROKEN": "cuda:0,cuda:1"})
    split = daemon.submit("rows=1", devices="all")["id"]
    why = daemon.until(lambda: reasons(daemon, split).get("worker_failing"))
    assert "started again soon" in why["detail"]
    assert [daemon.submit("rows=1", wait=10)["state"] for _ in range(3)] == ["succeeded"] * 3
    daemon.act(split, "cancel")


def test_workers_leave_one_by_one(make_daemon):
    daemon = make_daemon(cards=2, options=("--worker-idle", "1"))
    short, long = daemon.submit("rows=1")["id"], daemon.submit("rows=50 slow=100")["id"]
    daemon.wait_for(short, "succeeded")
    gone = next(card for card in CARDS if card != daemon.wait_for(long, "running")["device"])
    daemon.until(lambda: daemon.devices()[gone]["worker"] == "none", seconds=5)
    assert daemon.job(long)["state"] == "running" and daemon.devices()[gone]["state"] == "idle"
    daemon.act(long, "cancel")
    assert daemon.submit("rows=1", device=gone, wait=10)["state"] == "succeeded"
    assert daemon.devices()[gone]["workers_lost"] == 0


# ---- the end of the daemon, and after ----


def test_sigterm_with_both_busy_requeues_both_in_time(two):
    for labels in ((LONG, LONG), ("hang", "hang"), ("hang", LONG)):
        jobs = [two.submit(label)["id"] for label in labels]
        running_on(two, *jobs)
        began = time.monotonic()
        assert two.stop() == 0
        assert time.monotonic() - began < 10
        two.start()
        assert {d for d in running_on(two, *jobs)} == set(CARDS)
        for id_ in jobs:
            assert two.job(id_)["attempt"] == 1
            two.act(id_, "cancel")


def test_with_fewer_devices_a_job_goes_on_where_there_is_one(two):
    jobs = [two.submit("rows=10 slow=100")["id"] for _ in range(2)]
    running_on(two, *jobs)
    two.until(lambda: all(len(two.rows(id_)) >= 2 for id_ in jobs))
    two.kill()
    two.cards = 1
    two.start()
    kept = [row["window"] for row in two.rows(jobs[1])]
    for id_ in jobs:
        assert two.wait_for(id_, "succeeded")["device"] == "cuda:0"
    made = [d["window"] for d in two.rows(jobs[1])]
    assert made == list(range(10)) and kept


def test_rows_of_a_card_are_not_mixed_with_those_of_the_cpu(two):
    """They differ in the last bits: a job that goes on elsewhere begins anew."""
    id_ = two.submit("rows=6 slow=100 crash-always=9")["id"]
    two.until(lambda: len(two.rows(id_)) >= 2)
    two.stop()
    two.cards = 0
    two.start()
    two.wait_for(id_, "running")
    assert len(two.rows(id_)) < 2
    assert two.wait_for(id_, "succeeded")["device"] == "cpu" and len(two.rows(id_)) == 6


def test_rows_of_one_precision_are_not_mixed_with_those_of_another(two):
    id_, many = two.submit(LONG)["id"], 10
    for precision in ("bf16", "fp32", "fp32", "bf16"):
        two.until(lambda: len(two.rows(id_)) >= many)
        two.stop()
        kept = two.options == ("--precision", precision) or (not two.options and precision == "bf16")
        two.options = ("--precision", precision)
        two.start()
        two.wait_for(id_, "running")
        assert (len(two.rows(id_)) >= many) == kept, precision
    two.act(id_, "cancel")


def test_rows_of_a_database_without_arithmetic(two):
    """Before it was kept, a card's rows may be of either precision; the cpu's are of its only one."""
    id_, many = two.submit(LONG)["id"], 10
    for cards, kept in ((2, False), (0, False), (0, True)):
        two.until(lambda: len(two.rows(id_)) >= many)
        two.stop()
        with sqlite3.connect(two.data / "hsaqd.db") as db:
            db.execute("ALTER TABLE job DROP COLUMN arithmetic")
            db.execute("DROP INDEX job_calibration")
            for column in ("calibration", "calibration_sha256"):
                db.execute(f"ALTER TABLE job DROP COLUMN {column}")
            db.execute("PRAGMA user_version = 1")
        db.close()
        two.cards = cards
        two.start()
        two.wait_for(id_, "running")
        assert (len(two.rows(id_)) >= many) == kept, cards
    two.act(id_, "cancel")


def test_a_job_that_asks_for_a_device_that_is_gone_waits_and_says_so(two):
    running, queued = (two.submit("rows=6 slow=100", device="cuda:1")["id"] for _ in range(2))
    two.until(lambda: len(two.rows(running)) >= 2)
    two.kill()
    two.cards = 1
    two.start()
    for id_ in (running, queued):
        two.wait_for(id_, "queued")
        explained = two.ask("GET", f"/v1/jobs/{id_}/explain").json
        assert explained["position"] is None and [r["code"] for r in explained["reasons"]] == ["device_missing"]
        assert "cuda:1" in explained["reasons"][0]["detail"] and "there is cuda:0" in explained["reasons"][0]["detail"]
    assert two.submit("rows=1", wait=10)["state"] == "succeeded"
    assert two.ask("PATCH", f"/v1/jobs/{queued}", {"device": "cuda:1"}).status == 422
    assert two.ask("PATCH", f"/v1/jobs/{queued}", {"device": "auto"}).status == 200
    assert two.wait_for(queued, "succeeded")["device"] == "cuda:0"
    assert two.ask("PATCH", f"/v1/jobs/{queued}", {"device": "cuda:0"}).status == 409
    assert two.job(running)["state"] == "queued"
    two.stop()
    two.cards = 2
    two.start()
    assert two.wait_for(running, "succeeded")["device"] == "cuda:1" and two.job(running)["attempt"] == 1


def test_a_waiting_job_can_be_given_another_device(two):
    blocker = two.submit(LONG, device="cuda:0")["id"]
    running_on(two, blocker)
    id_ = two.submit("rows=1", device="cuda:0")["id"]
    answer = two.ask("PATCH", f"/v1/jobs/{id_}", {"device": "cuda:1"})
    assert answer.json["device"] == "cuda:1" and answer.json["spec"]["device"] == "cuda:0"
    assert two.wait_for(id_, "succeeded")["device"] == "cuda:1"
    assert [d["device"] for _, t, d in two.events(id_) if t == "update"] == ["cuda:1"]
    assert two.ask("PATCH", f"/v1/jobs/{blocker}", {"device": "cuda:1"}).status == 409
