"""The jobs resource: submission, order, steering, idempotency, and what clients see of it."""

import csv
import io
import time

RUNNING_LONG = "rows=1000 slow=50"


def faults(answer):
    return {f["pointer"] for f in answer.json["errors"]}


def test_a_job_runs_and_shows_its_result_rows_and_events(daemon):
    job = daemon.submit("rows=3", wait=10)
    assert job["state"] == "succeeded" and job["attempt"] == 1 and job["device"] == "cpu"
    assert daemon.ask("GET", f"/v1/jobs/{job['id']}/result").json["rows"] == 3
    assert [row["window"] for row in daemon.rows(job["id"])] == [0, 1, 2]
    lines = daemon.ask("GET", f"/v1/jobs/{job['id']}/rows?format=csv").body.decode().split("\r\n")
    assert lines[0] == "window,tokens,nll,made_in" and lines[2] == "1,10,0.14285714285714285,1"
    assert len(daemon.ask("GET", f"/v1/jobs/{job['id']}/rows", Accept="application/x-ndjson").body.splitlines()) == 3
    states = [data["state"] for _, type_, data in daemon.events(job["id"]) if type_ == "state"]
    assert states == ["queued", "running", "succeeded"]


def test_csv_has_a_column_for_every_key_of_every_row(daemon):
    job = daemon.submit("rows=3 ragged", wait=10)
    text = daemon.ask("GET", f"/v1/jobs/{job['id']}/rows?format=csv").body.decode()
    header, *rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    assert header == ["window", "tokens", "nll", "made_in", "only,0", "only,1", "only,2"]
    assert [row[4:] for row in rows] == [["0", "", ""], ["", "1", ""], ["", "", "2"]]
    assert all(len(row) == 7 and row[0] == str(window) for window, row in enumerate(rows))


def test_rows_come_in_pages(daemon):
    job = daemon.submit("rows=5", wait=10)
    target, seen = f"/v1/jobs/{job['id']}/rows?limit=2", []
    page = daemon.ask("GET", target).json
    while True:
        seen += [row["window"] for row in page["items"]]
        if not page["next"]:
            break
        page = daemon.ask("GET", f"{target}&cursor={page['next']}").json
    assert seen == [0, 1, 2, 3, 4]


def test_events_resume_without_gap_or_duplicate(daemon):
    job = daemon.submit("rows=1", wait=10)
    every = [e for e in daemon.events(job["id"]) if e[0]]
    assert [e[0] for e in every] == list(range(1, len(every) + 1))
    for n in range(len(every)):
        assert daemon.events(job["id"], Last_Event_ID=str(n)) == every[n:]


def test_bad_specs_are_refused_with_pointers(daemon):
    assert faults(daemon.ask("POST", "/v1/jobs", {"kind": "eval", "model": "none", "dataset": "d"})) == {"/model"}
    assert faults(daemon.ask("POST", "/v1/jobs", {"kind": "eval", "model": "../m", "dataset": "d"})) == {"/model"}
    answer = daemon.ask("POST", "/v1/jobs", {"kind": "eval", "model": "org/m", "dataset": "x", "after": ["nope"]})
    assert answer.status == 422 and faults(answer) == {"/dataset", "/after/0"}
    other = daemon.submit(wait=10)["id"]
    answer = daemon.ask("POST", "/v1/jobs", {"kind": "allocation", "profile": other, "budget": {"average_bits": 3.3}})
    assert answer.status == 422 and faults(answer) == {"/profile"} and "eval" in answer.json["detail"]
    assert daemon.ask("POST", "/v1/jobs", "[1").status == 400
    assert daemon.ask("GET", "/v1/jobs/nope").status == 404


def test_a_job_may_come_after_as_many_as_the_contract_says(daemon):
    first = daemon.submit(RUNNING_LONG)["id"]
    eval_ = {"kind": "eval", "model": "org/m", "dataset": "d", "compare": first}
    ids = [daemon.submit(after=[first])["id"] for _ in range(64)]
    job = daemon.ask("POST", "/v1/jobs", {**eval_, "after": ids})
    assert job.status == 202, job.body
    waits = daemon.ask("GET", f"/v1/jobs/{job.json['id']}/explain").json["reasons"]
    assert {r["job"] for r in waits if r["code"] == "dependency"} == {first, *ids}
    assert faults(daemon.ask("POST", "/v1/jobs", {**eval_, "after": [*ids, first]})) == {"/after"}


def test_idempotency_key_returns_the_first_job(daemon):
    spec = {"kind": "eval", "model": "org/m", "dataset": "d"}
    first = daemon.ask("POST", "/v1/jobs", spec, Idempotency_Key="k").json["id"]
    again = {"dataset": "d", "model": "org/m", "kind": "eval"}
    assert daemon.ask("POST", "/v1/jobs", again, Idempotency_Key="k").json["id"] == first
    assert daemon.ask("POST", "/v1/jobs", {**spec, "label": "x"}, Idempotency_Key="k").status == 422
    assert len(daemon.ask("GET", "/v1/jobs").json["items"]) == 1


def test_priority_goes_first_then_order_of_submission(daemon):
    blocker = daemon.submit(RUNNING_LONG)["id"]
    daemon.wait_for(blocker, "running")
    low, high, late = (daemon.submit("rows=1", priority=p)["id"] for p in (0, 5, 0))
    why = daemon.ask("GET", f"/v1/jobs/{late}/explain").json
    assert why["position"] == 3 and {r["code"] for r in why["reasons"]} == {"busy", "queue"}
    assert daemon.ask("PATCH", f"/v1/jobs/{late}", {"priority": 9, "label": "rows=1 now"}).json["priority"] == 9
    daemon.act(blocker, "cancel")
    jobs = [daemon.wait_for(id_, "succeeded") for id_ in (late, high, low)]
    assert [j["id"] for j in sorted(jobs, key=lambda j: j["started_at"])] == [late, high, low]


def test_a_job_waits_for_what_it_needs_and_fails_with_it(daemon):
    first = daemon.submit("rows=20 slow=50")["id"]
    second = daemon.submit(after=[first])["id"]
    third = daemon.submit(after=[second])["id"]
    reasons = daemon.ask("GET", f"/v1/jobs/{second}/explain").json["reasons"]
    assert [(r["code"], r["job"]) for r in reasons] == [("dependency", first)]
    daemon.act(first, "cancel")
    assert first in daemon.job(second)["error"]["message"] and second in daemon.job(third)["error"]["message"]
    assert daemon.act(second, "retry").status == 409
    for id_ in (first, second, third):
        assert daemon.act(id_, "retry").json["state"] == "queued"
    assert daemon.wait_for(third, "succeeded", seconds=30)


def test_the_job_that_a_spec_names_is_handed_over(daemon):
    first = daemon.submit("rows=2")["id"]
    second = daemon.submit(compare=first, wait=10)
    assert daemon.ask("GET", f"/v1/jobs/{second['id']}/result").json["inputs"] == ["compare"]
    assert daemon.ask("DELETE", f"/v1/jobs/{first}").status == 204
    assert daemon.job(second["id"])["state"] == "succeeded"


def test_cancel_stops_within_a_second_even_a_worker_that_hangs(daemon):
    for label in (RUNNING_LONG, "hang"):
        id_ = daemon.submit(label)["id"]
        daemon.wait_for(id_, "running")
        began = time.monotonic()
        assert daemon.act(id_, "cancel").json["state"] == "cancelled"
        assert time.monotonic() - began < 1
        assert daemon.act(id_, "cancel").status == 409
    assert daemon.submit(wait=10)["state"] == "succeeded"


def test_pause_keeps_the_rows_and_resume_goes_on_after_them(daemon):
    id_ = daemon.submit("rows=12 slow=100")["id"]
    daemon.until(lambda: len(daemon.rows(id_)) >= 2)
    assert daemon.act(id_, "pause").json["state"] == "paused"
    kept = daemon.rows(id_)
    assert daemon.ask("GET", f"/v1/jobs/{id_}/explain").json["reasons"][0]["code"] == "paused"
    assert daemon.act(id_, "resume").json["state"] == "queued"
    daemon.wait_for(id_, "succeeded")
    assert daemon.rows(id_)[: len(kept)] == kept and len(daemon.rows(id_)) == 12


def test_etag_answers_304_until_the_job_changes(daemon):
    id_ = daemon.submit(wait=10)["id"]
    etag = daemon.ask("GET", f"/v1/jobs/{id_}").headers["ETag"]
    assert daemon.ask("GET", f"/v1/jobs/{id_}", If_None_Match=etag).status == 304
    daemon.ask("PATCH", f"/v1/jobs/{id_}", {"label": None})
    assert daemon.ask("GET", f"/v1/jobs/{id_}", If_None_Match=etag).json["label"] is None


def test_lists_filter_and_page(daemon):
    ids = [daemon.submit(wait=10)["id"] for _ in range(3)]
    page = daemon.ask("GET", "/v1/jobs?limit=2&state=succeeded&kind=eval&model=org/m").json
    assert [j["id"] for j in page["items"]] == [ids[2], ids[1]]
    page = daemon.ask("GET", f"/v1/jobs?limit=2&cursor={page['next']}").json
    assert [j["id"] for j in page["items"]] == [ids[0]] and page["next"] is None
    assert daemon.ask("GET", "/v1/jobs?state=failed").json["items"] == []
    assert daemon.ask("GET", "/v1/jobs?kind=evals").json["errors"][0]["pointer"] == "?kind"


def test_a_dataset_stays_while_a_job_needs_it(daemon):
    id_ = daemon.submit(RUNNING_LONG)["id"]
    assert daemon.ask("DELETE", "/v1/datasets/d").status == 409
    assert daemon.ask("DELETE", f"/v1/jobs/{id_}").status == 409
    daemon.act(id_, "cancel")
    assert daemon.ask("DELETE", "/v1/datasets/d").status == 204
    daemon.until(lambda: not list((daemon.data / "datasets").iterdir()))
