"""hsaq-worker bench times every phase on a tiny architecture: the table for people, and the same as JSON."""

import json
import subprocess

import pytest
from conftest import BUILD, ROOT

OPTIONS = ["--synthetic", "--device", "cpu", "--threads", "1", "--windows", "2", "--length", "32"]


def bench(*arguments):
    worker = BUILD / "hsaq-worker"
    if not worker.exists():
        pytest.skip("hsaq-worker is not built")
    return subprocess.run([worker, "bench", *OPTIONS, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_every_phase_is_in_the_table_and_in_the_json(tmp_path):
    done = bench("--config", "tests/golden/models/granite/config.json", "--json", tmp_path / "bench.json")
    assert done.returncode == 0, done.stderr
    own = [line for line in done.stderr.splitlines() if "TSAN_OPTIONS" not in line]  # a sanitizer's advice
    assert own == []  # not a terminal: no progress
    report = json.loads((tmp_path / "bench.json").read_text())
    assert [phase["phase"] for phase in report["phases"]] == [
        "gemm",
        "eval",
        "paired eval",
        "profile, 3 candidates",
        "profile, 4 candidates",
    ]
    for phase in report["phases"]:
        assert phase["phase"] in done.stdout
        assert phase["seconds"] > 0 and phase["flops"] > 0 and phase["memory_peak"] > 0
    for phase in report["phases"][1:]:
        assert phase["floor_seconds"] == pytest.approx(phase["flops"] / phase["gemm_tflops"] / 1e12)
        assert phase["ratio"] == pytest.approx(phase["seconds"] / phase["floor_seconds"])
    assert [row["candidate"] for row in report["quantize"]] == [
        f"{method}{bits}g64" for method in ("rtn", "hqq") for bits in (2, 3, 4)
    ]
    assert report["paired_ratio"] > 0 and "peak device memory" in done.stdout


def test_a_config_that_is_not_supported_is_refused_by_name(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama", "num_local_experts": 8}')
    done = bench("--config", tmp_path / "config.json")
    assert done.returncode == 1 and done.stdout == ""
    assert "num_local_experts" in done.stderr
