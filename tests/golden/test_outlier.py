"""Outlier channels that do not change a model's function change its profile as theory says (tools/make-outlier)."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
WORKER = ROOT / os.environ.get("HSAQ_BUILD", "build") / "hsaq-worker"
FIXTURE = ROOT / "tests" / "fixture"
SCALED = {f"model.layers.{block}.{name}" for block in (1, 3) for name in (
    "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """The fixture, and its twin with outlier channels in blocks 1 and 3."""
    if not WORKER.exists():
        pytest.skip("hsaq-worker is not built")
    twin = tmp_path_factory.mktemp("models") / "outlier"
    subprocess.run([sys.executable, ROOT / "tools" / "make-outlier", FIXTURE / "tiny", twin], check=True)
    return FIXTURE / "tiny", twin


def run(spec, folder):
    """The job's rows for clients, and its result."""
    job = folder / "job.json"
    job.write_text(json.dumps(spec))
    command = [WORKER, "run", job, "--threads", "1"]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    messages = [json.loads(line) for line in lines]
    rows = [m["data"] for m in messages if m["type"] == "row" and not m["phase"].startswith("_")]
    return rows, next(m["result"] for m in messages if m["type"] == "result")


def evaluate(model, folder, **more):
    text = str(FIXTURE / "heldout.txt")
    return run({"kind": "eval", "model": str(model), "dataset": text, "length": 128, "windows": 6, **more}, folder)


def profile(model, folder):
    calibration = {"dataset": str(FIXTURE / "calibration.txt"), "samples": 3, "length": 64}
    candidates = [{"method": "rtn", "bits": [3, 8], "group": [16, 64]}, {"method": "hqq", "bits": 3, "group": 64}]
    spec = {"kind": "profile", "model": str(model), "calibration": calibration, "candidates": candidates}
    return {(row["name"], row["candidate"]): row for row in run(spec, folder)[0]}


def test_the_twin_computes_the_same_function(models, tmp_path):
    assert (models[0] / "model.safetensors").read_bytes() != (models[1] / "model.safetensors").read_bytes()
    plain, twin = (evaluate(model, tmp_path)[0] for model in models)
    assert len(plain) == 6 and plain == twin


def test_drift_rises_where_groups_hold_an_outlier_and_nowhere_else(models, tmp_path):
    plain, twin = (profile(model, tmp_path) for model in models)
    assert len(plain) == 6 * 7 * 5
    rise = {key: twin[key]["drift"] / plain[key]["drift"] for key in plain}
    for (name, candidate), factor in rise.items():
        if name not in SCALED:
            assert factor == 1, f"{name} {candidate}"
            continue
        assert factor > 3, f"{name} {candidate}"
        assert twin[name, candidate]["bytes"] == plain[name, candidate]["bytes"]
        # One channel in 64 is an outlier: all groups of 64 hold one, and one in four groups of 16.
        if candidate in ("rtn3g64", "rtn8g64"):
            assert factor > 8 and factor > 1.5 * rise[name, candidate.replace("g64", "g16")], f"{name} {candidate}"


def test_outliers_cost_quality_at_low_bits(models, tmp_path):
    uniform = {"method": "rtn", "bits": 3, "group": 64}
    plain, twin = (evaluate(model, tmp_path, uniform=uniform)[1] for model in models)
    assert plain["reference"] == twin["reference"]
    assert twin["kl"]["mean"] > 2 * plain["kl"]["mean"]
    assert twin["delta"]["percent"] > 2 * plain["delta"]["percent"] > 0
