"""A quantize job over HTTP: what it is refused for, what its worker is told, and the model that it leaves."""

import fcntl
import json
import os

import pytest
from service import add_model, assert_problem, FIXTURE, real_service  # noqa: F401

RTN = {"method": "rtn", "bits": 4, "group": 64}
GPTQ = {"method": "gptq", "bits": 4, "group": 64}


def a_quantize(**members):
    return {"kind": "quantize", "model": "org/m", "name": "made", **members}


def result(daemon, id_):
    daemon.wait_for(id_, "succeeded")
    return daemon.ask("GET", f"/v1/jobs/{id_}/result").json


def test_what_is_refused(daemon):
    post = lambda spec: daemon.ask("POST", "/v1/jobs", spec)  # noqa: E731
    for name in ("", ".", "..", ".made", "a/b", "/a", "a b", "ä", "a\\b", "x" * 129, 7):
        assert_problem(post(a_quantize(name=name, uniform=RTN)), 422, "/name")
    assert_problem(post(a_quantize()), 422, "")
    assert_problem(post(a_quantize(uniform=RTN, allocation="x")), 422, "/uniform")
    assert_problem(post(a_quantize(uniform=RTN, target="gguf")), 422, "/target")
    assert_problem(post(a_quantize(uniform=GPTQ)), 422, "/calibration")
    assert_problem(post(a_quantize(allocation="nosuch")), 422, "/allocation")
    assert_problem(post(a_quantize(model="none", uniform=RTN)), 422, "/model")
    assert_problem(post({"kind": "eval", "model": "org/m", "dataset": "d", "artifact": "none"}), 422, "/artifact")


def test_a_name_that_a_model_has_is_refused(daemon):
    (daemon.models / "taken").mkdir()
    (daemon.models / "taken/config.json").write_text("{}")
    problem = daemon.ask("POST", "/v1/jobs", a_quantize(name="taken", uniform=RTN))
    assert_problem(problem, 409, "/name")
    assert "taken" in problem.json["detail"]
    (daemon.data / "artifacts/made").mkdir()
    assert daemon.ask("POST", "/v1/jobs", a_quantize(uniform=RTN)).status == 202  # a folder that is no model
    (daemon.data / "artifacts/made/config.json").write_text("{}")
    assert_problem(daemon.ask("POST", "/v1/jobs", a_quantize(uniform=RTN)), 409, "/name")


def test_the_worker_is_told_which_folder(daemon):
    id_ = daemon.ask("POST", "/v1/jobs", a_quantize(uniform=RTN)).json["id"]
    told = result(daemon, id_)
    assert told["artifact"] == {"name": "made", "path": str(daemon.data / "artifacts/made")}
    assert told["dataset"] is None and told["calibration"] is None
    assert result(daemon, daemon.submit(artifact="org/m")["id"])["artifact"] == {
        "name": "org/m", "path": str(daemon.models / "org/m")}


def test_an_eval_may_come_after_the_job_that_makes_its_artifact(daemon):
    running = daemon.submit("hang", device="cpu")["id"]
    maker = daemon.ask("POST", "/v1/jobs", a_quantize(uniform=RTN)).json["id"]
    spec = {"kind": "eval", "model": "org/m", "dataset": "d", "artifact": "made"}
    assert_problem(daemon.ask("POST", "/v1/jobs", spec), 422, "/artifact")
    assert_problem(daemon.ask("POST", "/v1/jobs", {**spec, "artifact": "other", "after": [maker]}), 422, "/artifact")
    assert_problem(daemon.ask("POST", "/v1/jobs", {**spec, "after": [running]}), 422, "/artifact")
    id_ = daemon.ask("POST", "/v1/jobs", {**spec, "after": [running, maker]}).json["id"]
    daemon.act(running, "cancel")
    assert daemon.wait_for(id_, "failed", "succeeded")["error"]["code"] == "dependency_failed"
    id_ = daemon.ask("POST", "/v1/jobs", {**spec, "after": [maker]}).json["id"]
    assert "made" in daemon.wait_for(id_, "failed", "succeeded")["error"]["message"]  # this worker makes nothing


def test_an_allocation_brings_its_profiles_calibration(daemon):
    daemon.put_dataset("c", "calibrate on this\n")
    post = lambda **spec: daemon.ask("POST", "/v1/jobs", spec).json["id"]  # noqa: E731
    profile = post(kind="profile", model="org/m", candidates=[GPTQ], calibration={"dataset": "c"})
    allocation = post(kind="allocation", profile=profile, budget={"average_bits": 4})
    told = result(daemon, post(**a_quantize(allocation=allocation)))
    assert told["calibration"]["name"] == "c" and told["inputs"] == ["allocation"]
    daemon.put_dataset("own")
    told = result(daemon, post(**a_quantize(allocation=allocation, calibration={"dataset": "own"})))
    assert told["calibration"]["name"] == "own"
    daemon.put_dataset("c", "another text\n")
    problem = daemon.ask("POST", "/v1/jobs", a_quantize(allocation=allocation))
    assert_problem(problem, 422, "/calibration")


# --- what a deleted job leaves ---


def half_made(daemon, name="made"):
    folder = daemon.data / f"artifacts/.{name}.partial"
    folder.mkdir()
    for file in (".key", "model-00001-of-00002.safetensors", ".model-00002-of-00002.safetensors.writing"):
        (folder / file).write_text("half")
    return folder


def post_ended(daemon, **members):
    id_ = daemon.ask("POST", "/v1/jobs", a_quantize(uniform=RTN, **members)).json["id"]
    daemon.wait_for(id_, "failed", "succeeded", "cancelled")
    return id_


def delete(daemon, id_):
    assert daemon.ask("DELETE", f"/v1/jobs/{id_}").status == 204
    assert daemon.ask("GET", f"/v1/jobs/{id_}").status == 404


def test_a_deleted_job_takes_its_half_made_artifact_along(daemon):
    failed = post_ended(daemon, label="fail")
    folder, others = half_made(daemon), [half_made(daemon, "made2"), half_made(daemon, "mad")]
    delete(daemon, failed)
    assert not folder.exists() and all(len(list(other.iterdir())) == 3 for other in others)
    cancelled = daemon.ask("POST", "/v1/jobs", a_quantize(uniform=RTN, label="rows=100 slow=50")).json["id"]
    daemon.wait_for(cancelled, "running")
    folder = half_made(daemon)
    daemon.act(cancelled, "cancel")
    assert folder.exists()  # a retry goes on with it
    delete(daemon, cancelled)
    assert not folder.exists()
    folder = half_made(daemon)
    (folder / ".key").unlink()  # as a kill in the middle of a removal leaves it
    delete(daemon, post_ended(daemon, label="fail"))
    assert not folder.exists()
    delete(daemon, post_ended(daemon, label="fail"))  # which has left nothing
    assert "level=warn" not in (daemon.folder / "log").read_text()


def test_a_half_made_artifact_stays_while_another_job_may_go_on_with_it(daemon):
    first, second = post_ended(daemon, label="fail"), post_ended(daemon, label="fail")
    folder = half_made(daemon)
    delete(daemon, first)
    assert len(list(folder.iterdir())) == 3
    running = daemon.ask("POST", "/v1/jobs", a_quantize(uniform=RTN, label="hang")).json["id"]
    daemon.wait_for(running, "running")
    delete(daemon, second)
    assert len(list(folder.iterdir())) == 3
    daemon.act(running, "cancel")
    delete(daemon, running)
    assert not folder.exists()


def test_a_half_made_artifact_that_is_not_the_jobs_stays(daemon):
    succeeded, folder = post_ended(daemon), half_made(daemon)
    delete(daemon, succeeded)
    assert len(list(folder.iterdir())) == 3
    held = os.open(folder, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)  # as whoever writes in it does
    delete(daemon, post_ended(daemon, label="fail"))
    assert len(list(folder.iterdir())) == 3
    os.close(held)
    folder.rename(daemon.folder / "elsewhere")
    folder.symlink_to(daemon.folder / "elsewhere")
    delete(daemon, post_ended(daemon, label="fail"))
    assert len(list((daemon.folder / "elsewhere").iterdir())) == 3


# --- with the worker ---


@pytest.fixture(scope="module")
def lab(real_service):  # noqa: F811
    add_model(real_service, "tiny")
    real_service.put_dataset("calibration", (FIXTURE.parent / "calibration.txt").read_text())
    real_service.put_dataset("heldout", (FIXTURE.parent / "heldout.txt").read_text())
    return real_service


def run(service, **spec):
    answer = service.ask("POST", "/v1/jobs", spec, {"Prefer": "wait=60"})
    assert answer.status == 202, answer.body
    return answer.json


def succeed(service, **spec):
    job = run(service, **spec)
    assert job["state"] == "succeeded", job["error"]
    return job["id"], service.ask("GET", f"/v1/jobs/{job['id']}/result").json


def losses(service, id_):
    return [row["nll_quantized"] for row in service.rows(id_)]


def test_from_profile_to_the_eval_of_an_artifact(lab):
    candidates = [{"method": "gptq", "bits": [3, 4], "group": 64, "symmetric": True},
                  {"method": "hqq", "bits": [2, 3], "group": 64}]
    calibration = {"dataset": "calibration", "samples": 2, "length": 64}
    profile, _ = succeed(lab, kind="profile", model="tiny", candidates=candidates, calibration=calibration)
    allocation, solved = succeed(lab, kind="allocation", profile=profile, target="compressed-tensors",
                                 budget={"average_bits": 3.5})
    assert solved["target"] == "compressed-tensors"
    assert {row["candidate"] for row in solved["assignment"]} == {"gptq3g64-sym", "gptq4g64-sym"}
    id_, made = succeed(lab, kind="quantize", model="tiny", name="tiny-ct", allocation=allocation)
    assert made["target"] == "compressed-tensors" and made["average_bits"] == solved["average_bits"]
    assert made["weights"] == solved["bytes"] and made["fingerprint"] == solved["fingerprint"]
    assert made["calibration"]["dataset"] == "calibration"
    assert [(row["name"], row["candidate"], row["bytes"]) for row in lab.rows(id_)] == [
        (row["name"], row["candidate"], row["bytes"]) for row in solved["assignment"]]
    folder = lab.data / "artifacts/tiny-ct"
    assert made["path"] == str(folder) and made["files"] == len(list(folder.iterdir()))
    assert made["bytes"] == sum(file.stat().st_size for file in folder.iterdir())
    provenance = json.loads((folder / "provenance.json").read_text())
    assert provenance["model"]["fingerprint"] == made["fingerprint"] and provenance["calibration"]["sha256"]
    for file in folder.glob("*.json"):
        assert allocation not in file.read_text() and profile not in file.read_text(), file

    names = [m["name"] for m in lab.ask("GET", "/v1/models").json["items"]]
    assert "tiny-ct" in names
    assert lab.ask("GET", "/v1/models/tiny-ct").json["quantization"] == "compressed-tensors"
    compared = dict(kind="eval", model="tiny", dataset="heldout", length=64, windows=4)
    artifact, of_artifact = succeed(lab, **compared, artifact="tiny-ct")
    recipe, of_recipe = succeed(lab, **compared, allocation=allocation)
    assert losses(lab, artifact) == losses(lab, recipe) and len(losses(lab, artifact)) == 4
    assert of_artifact["kl"] == of_recipe["kl"]


def test_a_job_that_was_cancelled_and_deleted_leaves_nothing(lab):
    spec = {"kind": "quantize", "model": "tiny", "name": "dropped", "uniform": {"method": "gptq", "bits": 3, "group": 64},
            "calibration": {"dataset": "calibration", "samples": 32, "length": 128}}
    id_ = lab.ask("POST", "/v1/jobs", spec).json["id"]
    folder = lab.data / "artifacts/.dropped.partial"
    lab.until(lambda: list(folder.glob("model-*.safetensors")))
    assert lab.act(id_, "cancel").status == 200
    assert list(folder.glob("model-*.safetensors"))
    assert lab.ask("DELETE", f"/v1/jobs/{id_}").status == 204
    assert not list((lab.data / "artifacts").glob("*dropped*"))


def test_a_target_that_cannot_carry_the_recipe_is_refused(lab):
    job = run(lab, kind="quantize", model="tiny", name="float", uniform=RTN, target="vllm")
    assert job["state"] == "failed" and job["error"]["code"] == "unsupported"
    assert "down_proj (blocks 0-5)" in job["error"]["message"] and "integer" in job["error"]["message"]
    assert not list((lab.data / "artifacts").glob("*float*"))


def test_an_artifact_is_compared_with_its_own_model_alone(lab):
    succeed(lab, kind="quantize", model="tiny", name="tiny-rtn", uniform=RTN)
    add_model(lab, "other")
    weights = bytearray((lab.models / "other/model.safetensors").read_bytes())
    weights[-2] ^= 1
    (lab.models / "other/model.safetensors").write_bytes(weights)
    job = run(lab, kind="eval", model="other", dataset="heldout", length=64, windows=1, artifact="tiny-rtn")
    assert job["state"] == "failed" and "'tiny-rtn' was not made of 'other'" in job["error"]["message"], job["error"]


def test_a_quantized_model_is_not_quantized_again(lab):
    succeed(lab, kind="quantize", model="tiny", name="once", uniform=RTN)
    job = run(lab, kind="quantize", model="once", name="twice", uniform=RTN)
    assert job["state"] == "failed" and "quantized already" in job["error"]["message"]
