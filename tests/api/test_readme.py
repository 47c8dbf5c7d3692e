"""README.md's session with curl works as it stands there, typed into one shell after the other."""

import json
import re
import shutil
import subprocess

import pytest
from conftest import BUILD, ROOT


def session():
    text = (ROOT / "README.md").read_text().split("## A session with curl")[1].split("\n## ")[0]
    return "\n".join(line[4:] for line in re.findall(r"^    .*$", text, re.MULTILINE))


@pytest.mark.skipif(BUILD != ROOT / "build", reason="the README is of the plain build: what its jobs run, other tests run")
def test_the_session_in_the_readme_works(make_daemon):
    worker = BUILD / "hsaq-worker"
    if not worker.exists() or not shutil.which("jq"):
        pytest.skip("needs hsaq-worker and jq")
    daemon, commands = make_daemon(worker=worker), session()
    start, commands = commands.split("\n", 1)
    assert start.startswith("build/hsaqd --data ") and "--models tests/fixture" in start
    shutil.copytree(ROOT / "tests/fixture/tiny", daemon.models / "tiny")
    script = "set -e\n" + commands.replace("localhost:8080", f"localhost:{daemon.port}")
    done = subprocess.run(["bash", "-c", script], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=120)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["quantized"]["ppl"] > result["reference"]["ppl"] > 1
