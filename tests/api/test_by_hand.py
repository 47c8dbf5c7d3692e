"""hsaq-worker run: a job without a daemon says what it would tell one, and goes on from what an earlier run printed."""

import json
import os
import subprocess

import pytest
from conftest import BUILD, ROOT

SPEC = {"kind": "eval", "model": "tests/fixture/tiny", "dataset": "tests/fixture/heldout.txt", "length": 64, "windows": 4}


def run(folder, *options, spec=SPEC):
    worker, job = BUILD / "hsaq-worker", folder / "job.json"
    if not worker.exists():
        pytest.skip("hsaq-worker is not built")
    job.write_text(json.dumps(spec))
    command = [worker, "run", job, "--device", "cpu", "--threads", "1", *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


def messages(done):
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def of_type(said, kind):
    return [message for message in said if message["type"] == kind]


def test_a_run_goes_on_after_the_rows_of_an_earlier_one(tmp_path):
    whole = messages(run(tmp_path))
    assert whole[0]["type"] == "hello" and whole[0]["arithmetic"] == "cpu/fp32" and whole[-1]["type"] == "result"
    rows, cut = of_type(whole, "row"), tmp_path / "cut"
    cut.write_text("".join(json.dumps(message) + "\n" for message in [whole[0], *rows[:2]]))
    rest = messages(run(tmp_path, "--resume", cut))
    assert of_type(rest, "row") == rows[2:]
    for said in (whole, rest):
        said[-1]["result"].pop("tokens_per_second")
    assert rest[-1] == whole[-1]


def test_a_run_goes_on_where_it_was_killed_within_a_line(tmp_path):
    whole, cut = run(tmp_path), tmp_path / "cut"
    rows = of_type(messages(whole), "row")
    lines = [line for line in whole.stdout.splitlines(True) if json.loads(line)["type"] in ("hello", "row")]
    cut.write_text("".join(lines[:3]) + lines[3][:30])
    assert of_type(messages(run(tmp_path, "--resume", cut)), "row") == rows[2:]


@pytest.mark.parametrize("spec, said", [
    ({**SPEC, "windows": 0}, "/windows: must be between 1 and"), ({"kind": "eval"}, "/model: is required")])
def test_a_refused_spec_is_told_by_its_place(tmp_path, spec, said):
    refused = run(tmp_path, spec=spec)
    assert refused.returncode == 1 and said in refused.stderr and len(refused.stderr.splitlines()) == 1


@pytest.mark.parametrize("options, said", [
    (["--colour"], "there is no option --colour"), (["--colour=red"], "there is no option --colour=red"),
    (["-x"], "there is no option -x"), (["--ram-limit"], "--ram-limit takes a value")])
def test_an_option_that_is_none_is_named(tmp_path, options, said):
    refused = run(tmp_path, *options)
    assert refused.returncode == 1 and said in refused.stderr and "hsaq-worker --help" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1


def test_help_is_had_behind_a_command_too(tmp_path):
    assert run(tmp_path, "--help").stdout.startswith("usage: hsaq-worker")


def test_a_fault_of_the_spec_is_placed(tmp_path):
    refused = run(tmp_path, spec={**SPEC, "length": 1})
    assert refused.returncode == 1 and "/length: must be between" in refused.stderr


@pytest.mark.parametrize("arithmetic", ["cuda/bf16", None])
def test_a_run_does_not_go_on_from_rows_of_another_arithmetic(tmp_path, arithmetic):
    whole, cut = messages(run(tmp_path)), tmp_path / "cut"
    hello = [{**whole[0], "arithmetic": arithmetic}] if arithmetic else []
    cut.write_text("".join(json.dumps(message) + "\n" for message in [*hello, *of_type(whole, "row")[:2]]))
    refused = run(tmp_path, "--resume", cut)
    assert refused.returncode == 1 and refused.stdout == ""
    assert "its rows were not made in cpu/fp32" in refused.stderr and str(cut) in refused.stderr


def test_an_artifact_is_made_where_it_is_asked_for(tmp_path):
    recipe = {"method": "gptq", "bits": 4, "group": 64}
    calibration = {"dataset": "tests/fixture/calibration.txt", "samples": 2, "length": 64}
    spec = {"kind": "quantize", "model": SPEC["model"], "name": "made", "uniform": recipe, "calibration": calibration}
    folders = [tmp_path / name for name in ("whole", "resumed")]
    for folder in folders:
        folder.mkdir()
    whole = messages(run(tmp_path, "--artifacts", folders[0], spec=spec))
    assert (folders[0] / "made/config.json").exists() and len(of_type(whole, "row")) == 42
    cut = tmp_path / "cut"
    cut.write_text("".join(json.dumps(message) + "\n" for message in [whole[0], *of_type(whole, "row")[:20]]))
    rest = messages(run(tmp_path, "--artifacts", folders[1], "--resume", cut, spec=spec))
    assert of_type(rest, "row") == of_type(whole, "row")[20:]
    for said in (whole, rest):
        said[-1]["result"].pop("path")
    assert rest[-1] == whole[-1]
    evaluate = {**SPEC, "artifact": str(folders[1] / "made")}
    by_path = messages(run(tmp_path, spec=evaluate))[-1]["result"]
    by_name = messages(run(tmp_path, "--artifacts", folders[0], spec={**SPEC, "artifact": "made"}))[-1]["result"]
    assert by_path["quantized"] == by_name["quantized"]


@pytest.mark.parametrize("holds", ["", 'const char backend_cuda_interface[] = "another";'])
def test_a_cuda_library_of_another_build_is_refused(tmp_path, holds):
    """Its table of operations may look otherwise: calling into it would crash."""
    library = tmp_path / "libother.so"
    subprocess.run(["gcc", "-shared", "-x", "c", "-", "-o", library], input=holds, text=True, check=True)
    done = subprocess.run([BUILD / "hsaq-worker", "devices"], capture_output=True, text=True, timeout=30, check=True,
                          env={**os.environ, "HSAQ_CUDA_LIBRARY": str(library)})
    unusable = json.loads(done.stdout)["ok"]["unusable"]
    assert [d["name"] for d in unusable] == ["cuda"] and "not of this program's build" in unusable[0]["reason"]
