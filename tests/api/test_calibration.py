"""A job's second dataset: named by the spec or by the profile behind its allocation, pinned at submission, kept."""

import hashlib

import pytest
from service import assert_problem

GPTQ = {"method": "gptq", "bits": 4, "group": 64}
HQQ = {"method": "hqq", "bits": 4, "group": 64}


def an_eval(**members):
    return {"kind": "eval", "model": "org/m", "dataset": "d", **members}


def result(daemon, id_):
    daemon.wait_for(id_, "succeeded")
    return daemon.ask("GET", f"/v1/jobs/{id_}/result").json


def test_a_spec_names_it(daemon):
    daemon.put_dataset("c", "calibrate on this\n")
    id_ = daemon.submit(uniform=GPTQ, calibration={"dataset": "c"})["id"]
    told = result(daemon, id_)
    digest = hashlib.sha256(b"calibrate on this\n").hexdigest()
    assert told["calibration"] == {"name": "c", "sha256": digest, "path": str(daemon.data / "datasets" / digest)}
    assert told["dataset"]["name"] == "d"
    assert result(daemon, daemon.submit(uniform=HQQ)["id"])["calibration"] is None


def test_what_is_refused(daemon):
    post = lambda spec: daemon.ask("POST", "/v1/jobs", spec)  # noqa: E731
    assert_problem(post(an_eval(uniform=GPTQ)), 422, "/calibration")
    assert_problem(post(an_eval(uniform=HQQ, calibration={"dataset": "d"})), 422, "/calibration")
    assert_problem(post(an_eval(calibration={"dataset": "d"})), 422, "/calibration")
    assert_problem(post(an_eval(uniform=GPTQ, calibration={"dataset": "x"})), 422, "/calibration/dataset")
    both = post(an_eval(dataset="y", uniform=GPTQ, calibration={"dataset": "x"}))
    assert_problem(both, 422, "/calibration/dataset")
    assert_problem(both, 422, "/dataset")


def test_refining_needs_it_too(daemon):
    daemon.put_dataset("c", "calibrate on this\n")
    id_ = daemon.submit(uniform=HQQ, refine=True, calibration={"dataset": "c"})["id"]
    assert result(daemon, id_)["calibration"]["name"] == "c"
    post = lambda **spec: daemon.ask("POST", "/v1/jobs", an_eval(**spec))  # noqa: E731
    assert_problem(post(uniform=HQQ, refine=True), 422, "/calibration")
    assert_problem(post(refine=True), 422, "/refine")
    assert_problem(post(uniform={"method": "fp8"}, refine=True, calibration={"dataset": "c"}), 422, "/refine")


def test_it_stays_while_a_job_needs_it(daemon):
    daemon.put_dataset("c", "calibrate on this\n")
    digest = hashlib.sha256(b"calibrate on this\n").hexdigest()
    running = daemon.submit("hang", device="cpu")["id"]
    daemon.wait_for(running, "running")
    waiting = daemon.submit(uniform=GPTQ, calibration={"dataset": "c"})["id"]
    assert_problem(daemon.ask("DELETE", "/v1/datasets/c"), 409)
    daemon.put_dataset("c", "something else\n")
    assert (daemon.data / "datasets" / digest).exists()
    daemon.act(running, "cancel")
    assert result(daemon, waiting)["calibration"]["sha256"] == digest
    assert daemon.ask("DELETE", "/v1/datasets/c").status == 204


@pytest.fixture
def allocated(daemon):
    """Ids of allocations whose profiles were calibrated on dataset c, by what the profiles tried."""
    daemon.put_dataset("c", "calibrate on this\n")

    def post(**spec):
        return daemon.ask("POST", "/v1/jobs", spec).json["id"]

    def allocate(candidate):
        profile = post(kind="profile", model="org/m", candidates=[candidate], calibration={"dataset": "c"})
        return post(kind="allocation", profile=profile, budget={"average_bits": 4})

    ids = {"gptq": allocate(GPTQ), "hqq": allocate(HQQ)}
    for id_ in ids.values():
        daemon.wait_for(id_, "succeeded")
    return ids


def test_an_allocation_brings_its_profiles(daemon, allocated):
    told = result(daemon, daemon.submit(allocation=allocated["gptq"])["id"])
    assert told["calibration"]["name"] == "c" and told["dataset"]["name"] == "d"
    daemon.put_dataset("own")
    own = daemon.submit(allocation=allocated["gptq"], calibration={"dataset": "own"})["id"]
    assert result(daemon, own)["calibration"]["name"] == "own"
    assert result(daemon, daemon.submit(allocation=allocated["hqq"])["id"])["calibration"] is None
    refined = daemon.submit(allocation=allocated["hqq"], refine=True)["id"]
    assert result(daemon, refined)["calibration"]["name"] == "c"


def test_a_profiles_text_that_is_gone_or_another_is_asked_for(daemon, allocated):
    daemon.put_dataset("c", "another text\n")
    spec = an_eval(allocation=allocated["gptq"])
    problem = daemon.ask("POST", "/v1/jobs", spec)
    assert_problem(problem, 422, "/calibration")
    assert "another text now" in problem.json["errors"][0]["detail"]
    assert daemon.ask("DELETE", "/v1/datasets/c").status == 204
    assert_problem(daemon.ask("POST", "/v1/jobs", spec), 422, "/calibration")
    assert daemon.ask("POST", "/v1/jobs", {**spec, "calibration": {"dataset": "d"}}).status == 202
    assert daemon.ask("POST", "/v1/jobs", an_eval(allocation=allocated["hqq"])).status == 202
