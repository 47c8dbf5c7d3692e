"""Models with one thing wrong, through the whole path: the job fails with words that name the file, no worker dies of
it, and the next job runs."""

import json
import shutil
import struct

import pytest

from service import FIXTURE, add_model, real_service  # noqa: F401

SPEC = {"kind": "eval", "dataset": "d", "length": 64, "windows": 1}


@pytest.fixture(scope="module")
def lab(real_service):
    real_service.put_dataset(text=(FIXTURE.parent / "heldout.txt").read_text()[:20000])
    add_model(real_service, "sound")
    return real_service


def run(service, **spec):
    answer = service.ask("POST", "/v1/jobs", spec, {"Prefer": "wait=25"})
    assert answer.status == 202, answer.body
    return answer.json


def config(folder, **members):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **members}))


def tokenizer(folder, change):
    path = folder / "tokenizer.json"
    tree = json.loads(path.read_text())
    change(tree)
    path.write_text(json.dumps(tree))


def weights(folder):
    """Header and data of model.safetensors."""
    data = (folder / "model.safetensors").read_bytes()
    end = 8 + struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8:end]), bytearray(data[end:])


def write_weights(folder, header, data, claimed=None):
    text = json.dumps(header).encode()
    length = len(text) if claimed is None else claimed
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", length) + text + data)


def cut_short(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def header_too_long(folder):
    write_weights(folder, *weights(folder), claimed=1 << 62)


def hole(folder):
    header, data = weights(folder)
    for name in header.keys() - {"__metadata__"}:
        header[name]["data_offsets"] = [offset + 64 for offset in header[name]["data_offsets"]]
    write_weights(folder, header, bytes(64) + data)


def overlap(folder):
    header, data = weights(folder)
    first, second = sorted((h for n, h in header.items() if n != "__metadata__"), key=lambda h: h["data_offsets"])[:2]
    second["data_offsets"][0] = first["data_offsets"][0]
    write_weights(folder, header, data)


def lying_shape(folder):
    header, data = weights(folder)
    header["model.norm.weight"]["shape"] = [1 << 40, 1 << 40]
    write_weights(folder, header, data)


def set_weight(folder, tensor, index, pattern):
    header, data = weights(folder)
    at = header[tensor]["data_offsets"][0] + 2 * index  # bf16
    data[at : at + 2] = pattern.to_bytes(2, "little")
    write_weights(folder, header, data)


def missing_shard(folder):
    header, _ = weights(folder)
    (folder / "model.safetensors").unlink()
    names = {name: "model-00001-of-00002.safetensors" for name in header if name != "__metadata__"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))


def nested(tree):
    for _ in range(200):
        tree["normalizer"] = {"type": "Sequence", "normalizers": [tree.get("normalizer") or {"type": "NFC"}]}


def huge_ids(tree):
    tree["model"]["vocab"] = {token: (1 << 31) - 1 - i for token, i in tree["model"]["vocab"].items()}


@pytest.mark.parametrize(
    "spoil, words",
    [
        (cut_short, "model.safetensors"),
        (header_too_long, "model.safetensors"),
        (hole, "model.safetensors"),
        (overlap, "model.safetensors"),
        (lying_shape, "model.norm.weight"),
        (missing_shard, "model-00001-of-00002.safetensors"),
        (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors"),
        (lambda folder: config(folder, intermediate_size=40), "intermediate_size"),
        (lambda folder: config(folder, num_hidden_layers=99), "model.layers."),
        (lambda folder: config(folder, hidden_act="relu"), "hidden_act"),
        (lambda folder: (folder / "config.json").write_text('{"model_type": "llama", "model_type"'), "config.json"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer.json"),
        (lambda folder: (folder / "tokenizer.json").write_text("{"), "tokenizer.json"),
        (lambda folder: tokenizer(folder, lambda tree: tree["model"]["merges"].append("no such")), "/model/merges"),
        (lambda folder: tokenizer(folder, nested), "tokenizer.json"),
        (lambda folder: tokenizer(folder, huge_ids), "vocab"),
    ],
    ids=["cut short", "long header", "hole", "overlap", "lying shape", "no shard", "no weights", "narrow MLP",
         "too many layers", "activation", "config cut", "no tokenizer", "tokenizer cut", "merge of nothing", "nested",
         "huge ids"],
)  # fmt: skip
def test_a_model_with_one_fault_fails_its_job_by_name(lab, request, spoil, words):
    name = request.node.callspec.id.replace(" ", "-")
    folder = lab.models / name
    shutil.copytree(FIXTURE, folder)
    spoil(folder)
    job = run(lab, **SPEC, model=name, uniform={"method": "rtn", "bits": 3, "group": 64})
    assert job["state"] == "failed" and job["attempt"] == 1, job
    assert job["error"]["code"] != "worker_lost" and words in str(job["error"]), job["error"]
    assert f"model '{name}'" in job["error"]["message"]
    assert run(lab, **SPEC, model="sound")["state"] == "succeeded"


WEIGHTS = [("model.embed_tokens.weight", 3), ("model.layers.1.post_attention_layernorm.weight", 7),
           ("model.layers.0.mlp.up_proj.weight", 5), ("model.norm.weight", 0)]  # fmt: skip


@pytest.mark.parametrize("tensor, index", WEIGHTS)
@pytest.mark.parametrize("kind", ["eval", "reference", "profile"])
def test_a_weight_that_is_no_number_is_named(lab, kind, tensor, index):
    name = f"{kind}-{tensor}"
    shutil.copytree(FIXTURE, lab.models / name)
    set_weight(lab.models / name, tensor, index, 0x7FC0 if kind == "eval" else 0xFF80)
    rtn = {"method": "rtn", "bits": 3, "group": 64}
    members = {"eval": {**SPEC, "uniform": rtn}, "reference": SPEC, "profile": {
        "kind": "profile", "candidates": [rtn], "head": True,
        "calibration": {"dataset": "d", "samples": 2, "length": 64}}}  # fmt: skip
    job = run(lab, **members[kind], model=name)
    message = job["error"]["message"] if job["state"] == "failed" else job
    message = message.replace("lm_head", "model.embed_tokens")  # they are tied
    assert tensor.removesuffix(".weight") in message and str(index) in message
    assert ("NaN" if kind == "eval" else "infinite") in message


def test_a_pattern_that_tries_too_long_fails_its_job(lab):
    """As a regular expression it is right; no name of a Linear gets it to an end."""
    spec = {"kind": "profile", "model": "sound", "calibration": {"dataset": "d", "samples": 1, "length": 64},
            "candidates": [{"method": "none"}], "layers": r"(?:(?:\w+\.?)+)+\.$"}  # fmt: skip
    job = run(lab, **spec)
    assert job["state"] == "failed" and spec["layers"] in job["error"]["message"], job
    assert "limit exceeded" in job["error"]["message"]
    allocation = {"kind": "allocation", "profile": run(lab, **{**spec, "layers": "q_proj"})["id"],
                  "budget": {"average_bits": 16}, "rules": [{"match": spec["layers"], "min_bits": 4}]}  # fmt: skip
    job = run(lab, **allocation)
    assert job["state"] == "failed" and "limit exceeded" in job["error"]["message"], job
