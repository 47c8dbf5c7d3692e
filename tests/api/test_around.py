"""A second round of scores over HTTP: profile, allocation, profile around it, allocation, eval; and after a kill."""

import os
import signal

import pytest
from conftest import BUILD
from service import FIXTURE, assert_problem, post, result_of

PROFILE = {"kind": "profile", "model": "tiny", "candidates": [{"method": "gptq", "bits": [2, 4], "group": 64, "guided": True}],
           "calibration": {"dataset": "cal", "samples": 4, "length": 64}}


@pytest.fixture
def lab(make_daemon):
    if not (BUILD / "hsaq-worker").exists():
        pytest.skip("hsaq-worker is not built")
    daemon = make_daemon(worker=BUILD / "hsaq-worker", options=("--models", FIXTURE.parent))
    daemon.put_dataset("cal", (FIXTURE.parent / "calibration.txt").read_text())
    daemon.put_dataset("heldout", (FIXTURE.parent / "heldout.txt").read_text())
    return daemon


def an_allocation(profile):
    return {"kind": "allocation", "profile": profile, "budget": {"average_bits": 3}}


def test_two_rounds_are_sent_at_once_and_the_second_measures_another_model(lab):
    first = post(lab, PROFILE)
    allocation = post(lab, an_allocation(first))
    second = post(lab, {**PROFILE, "around": allocation})
    again = post(lab, an_allocation(second))
    measured = post(lab, {"kind": "eval", "model": "tiny", "dataset": "heldout", "length": 64, "windows": 2,
                          "allocation": again})
    told = result_of(lab, second)
    assert told["around"]["allocation"] == allocation and told["around"]["bytes"] == result_of(lab, allocation)["bytes"]
    assert set(told["around"]["refined"]) == {"epochs", "steps", "kl_before", "kl_after"}
    assert told["around"]["refined"]["steps"] == 2 and told["rows"]["cached"] == 0
    rows, others = lab.rows(first), lab.rows(second)
    assert [(row["name"], row["candidate"]) for row in rows] == [(row["name"], row["candidate"]) for row in others]
    assert all(row["fisher"] != other["fisher"] > 0 for row, other in zip(rows, others))
    allocated = result_of(lab, again)
    assert allocated["around"] == allocation and allocated["prediction"] is None and allocated["score"] == "fisher"
    assert result_of(lab, allocation)["prediction"]["kl"] > 0 and "around" not in result_of(lab, allocation)
    assert result_of(lab, measured)["kl"]["mean"] > 0 and "prediction" not in result_of(lab, measured)

    stormy = post(lab, {**PROFILE, "around": allocation})
    lab.until(lambda: lab.rows(stormy))
    os.kill(lab.worker_pid(), signal.SIGKILL)
    repeated = result_of(lab, stormy)
    assert lab.rows(stormy) == others
    for key in ("totals", "inversions", "around", "above_rtn"):
        assert repeated[key] == told[key]


def test_what_is_not_an_allocation_is_refused(lab):
    first = post(lab, PROFILE)
    for change, pointer in (({"around": first}, "/around"), ({"around": "nosuch"}, "/around"),
                            ({"around": first, "scores": ["drift"]}, "/around")):
        assert_problem(lab.ask("POST", "/v1/jobs", {**PROFILE, **change}), 422, pointer)
