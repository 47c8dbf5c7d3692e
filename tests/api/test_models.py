"""Models: found beneath the roots and nowhere else, and described by the worker."""

import json
import os
import shutil
import subprocess

import pytest
from conftest import BUILD
from service import FIXTURE, add_model, assert_problem, real_service, service  # noqa: F401


def names(service):
    return [m["name"] for m in service.ask("GET", "/v1/models").json["items"]]


def test_models_are_found_by_their_path(service):
    (service.models / "org" / "nested").mkdir()
    (service.models / "org" / "nested" / "config.json").write_text("{}")
    snapshot = service.models / "models--team--cached" / "snapshots" / "abc123"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    refs = service.models / "models--team--cached" / "refs"
    refs.mkdir()
    (refs / "main").write_text("abc123")
    assert {"org/nested", "team/cached"} <= set(names(service))


def test_the_link_of_a_model_leads_to_it_whatever_its_folder_is_called(service):
    odd = "org/50% größer? #2"
    (service.models / odd).mkdir()
    (service.models / odd / "config.json").write_text("{}")
    link, = (m["links"]["self"] for m in service.ask("GET", "/v1/models").json["items"] if m["name"] == odd)
    assert link == "/v1/models/org/50%25%20gr%C3%B6%C3%9Fer%3F%20%232"
    assert "there is no model" not in service.ask("GET", link).body.decode()


def test_nothing_outside_the_roots_is_reached(service):
    outside = service.folder / "outside"
    outside.mkdir()
    (outside / "config.json").write_text("{}")
    os.symlink(outside, service.models / "link")
    assert "link" not in names(service)
    for name in ("link", "..", "../outside", "%2e%2e/outside", "..%2Foutside", "%2Fetc", "a/../../outside", "."):
        assert_problem(service.ask("GET", f"/v1/models/{name}"), 404)
        assert_problem(service.ask("POST", f"/v1/models/{name}/tokenize", {"text": "a"}), 404)
    assert_problem(service.ask("GET", "/v1/models/a%00"), 400)


def test_files_that_lead_out_of_the_roots_are_not_read(real_service):
    """The folder is beneath the root; its config, its weights or its tokenizer are not."""
    add_model(real_service, "inside")
    outside = real_service.folder / "elsewhere"
    outside.mkdir()
    for file in ("config.json", "model.safetensors", "tokenizer.json"):
        model = real_service.models / f"leads-out-{file.split('.')[0]}"
        model.mkdir()
        for original in (real_service.models / "inside").iterdir():
            shutil.copy(original, model)
        (model / file).rename(outside / file)
        (model / file).symlink_to(outside / file)
        answer = real_service.ask("POST", f"/v1/models/{model.name}/tokenize", {"text": "a"})
        described = real_service.ask("GET", f"/v1/models/{model.name}")
        refused = [a for a in (answer, described) if a.status != 200]
        assert refused and all(file in a.json["detail"] for a in refused), (file, answer.body, described.body)


def test_linears_and_tokens(real_service):
    add_model(real_service, "tiny")
    model = real_service.ask("GET", "/v1/models/tiny")
    assert model.status == 200, model.body
    assert model.json["linears"] and model.json["name"] == "tiny"
    again = real_service.ask("GET", "/v1/models/tiny", headers={"If-None-Match": model.headers["ETag"]})
    assert again.status == 304
    ids = real_service.ask("POST", "/v1/models/tiny/tokenize", {"text": "the cat"}).json["ids"]
    assert ids and all(isinstance(i, int) for i in ids)
    assert_problem(real_service.ask("POST", "/v1/models/tiny/tokenize", {"txt": "a"}), 422, "/txt")
    assert_problem(real_service.ask("POST", "/v1/models/none/tokenize", {"text": "a"}), 404)


def test_a_quantized_model_is_described_and_evaluated(real_service):
    """And one that is still being written is not there."""
    maker = BUILD / "tests" / "golden" / "make_artifact"
    if not maker.exists():
        pytest.skip("make_artifact is not built: make tests")
    codes = real_service.folder / "codes"
    codes.mkdir()
    made, growing = real_service.models / "made", real_service.models / ".growing.partial"
    subprocess.run([maker, FIXTURE, made, "vllm", codes, "rtn3g64-sym"], check=True)
    shutil.copytree(made, growing)
    assert "made" in names(real_service) and not [name for name in names(real_service) if "growing" in name]
    model = real_service.ask("GET", "/v1/models/made").json
    assert model["quantization"] == "compressed-tensors" and model["linears"][0]["packed"]["bits"] == 3
    real_service.put_dataset("held", (FIXTURE.parent / "heldout.txt").read_text())
    spec = {"kind": "eval", "model": "made", "dataset": "held", "length": 64, "windows": 2}
    job = real_service.ask("POST", "/v1/jobs", spec).json
    assert real_service.wait_for(job["id"], "succeeded", "failed", seconds=60)["error"] is None


def test_a_broken_model_is_an_error_of_its_own(real_service):
    broken = real_service.models / "broken"
    broken.mkdir()
    (broken / "config.json").write_text(json.dumps({"architectures": ["NoSuchModel"]}))
    answer = real_service.ask("GET", "/v1/models/broken")
    assert 400 <= answer.status < 500, answer.body
    assert real_service.ask("GET", "/healthz").status == 200
