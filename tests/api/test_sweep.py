"""A sweep from spec to ranking, over HTTP, and after its worker was killed."""

import os
import signal

import pytest
from conftest import BUILD
from service import FIXTURE, assert_problem, post, result_of

TEXT = (FIXTURE.parent / "heldout.txt").read_text()
SWEEP = {"kind": "sweep", "model": "tiny", "dataset": "heldout", "length": 128, "windows": 16,
         "candidate": {"method": "rtn", "bits": 3, "group": 64}, "layers": "(up|down)_proj"}
LINEARS = 12


@pytest.fixture
def lab(make_daemon):
    """With room for the reference and four Linears at a time: three passes."""
    if not (BUILD / "hsaq-worker").exists():
        pytest.skip("hsaq-worker is not built")
    daemon = make_daemon(worker=BUILD / "hsaq-worker", options=("--models", FIXTURE.parent, "--ram-limit", "5MiB"))
    daemon.put_dataset("heldout", TEXT)
    return daemon


def result(daemon, id_):
    of = result_of(daemon, id_)
    return of.pop("passes"), of, of.pop("tokens_per_second")


def test_a_sweep_ranks_its_rows_and_one_that_was_killed_is_the_same(lab):
    calm = post(lab, SWEEP)
    passes, ranking, _ = result(lab, calm)
    rows = {row["name"]: row for row in lab.rows(calm)}
    assert passes == 3 and len(rows) == LINEARS == len(ranking["ranked"])
    assert all(name.startswith("model.layers.") for name in rows)  # what is internal is not shown
    assert [row["delta_kl"] for row in ranking["ranked"]] == sorted((r["delta_kl"] for r in rows.values()), reverse=True)
    for row in ranking["ranked"]:
        assert row["delta_kl"] == rows[row["name"]]["delta_kl"] and row["category"] == rows[row["name"]]["category"]
    assert sum(row["share"] for row in ranking["ranked"]) == pytest.approx(1)
    assert {group["projection"] for group in ranking["by_projection"]} == {"up_proj", "down_proj"}

    stormy = post(lab, SWEEP)
    lab.until(lambda: len(lab.rows(stormy)) >= 4)  # a whole pass
    os.kill(lab.worker_pid(), signal.SIGKILL)
    passes, again, _ = result(lab, stormy)
    assert lab.job(stormy)["attempt"] == 2 and passes < 3 and again == ranking
    assert lab.rows(stormy) == lab.rows(calm)


def test_a_row_is_what_an_eval_of_an_allocation_like_it_says(lab):
    """An allocation that gives down_proj of block 5 three bits and leaves the rest: the same weights."""
    none, rtn = {"method": "none"}, SWEEP["candidate"]
    profile = post(lab, {"kind": "profile", "model": "tiny", "candidates": [none, rtn],
                         "calibration": {"dataset": "heldout", "samples": 1, "length": 64}})
    rules = [{"match": "layers.5.mlp.down_proj", "pin": rtn}, {"except": "layers.5.mlp.down_proj", "match": ".", "pin": none}]
    allocation = post(lab, {"kind": "allocation", "profile": profile, "rules": rules, "budget": {"average_bits": 16}})
    of = {key: SWEEP[key] for key in ("model", "dataset", "length", "windows")}
    measured = result_of(lab, post(lab, {"kind": "eval", **of, "allocation": allocation}))
    sweep = post(lab, {**SWEEP, "layers": "layers.5.mlp"})
    result(lab, sweep)
    row = next(row for row in lab.rows(sweep) if row["projection"] == "down_proj")
    assert row["delta_kl"] == measured["kl"]["mean"] > 0 and row["delta_nll"] == measured["delta"]["nll"]


def test_specs_that_make_no_sense_are_refused_where_they_are_wrong(lab):
    for change, pointer in (({"dataset": "nosuch"}, "/dataset"), ({"model": "nosuch"}, "/model"),
                            ({"noise": 0.1}, "/noise"), ({"devices": "all"}, "/devices"),
                            ({"candidate": {"method": "gptq", "bits": 3}}, "/calibration"),
                            ({"candidate": {"method": "gptq", "bits": 3}, "calibration": {"dataset": "nosuch"}},
                             "/calibration/dataset"),
                            ({"candidate": {"method": "none"}}, "/candidate")):
        assert_problem(lab.ask("POST", "/v1/jobs", {**SWEEP, **change}), 422, pointer)
