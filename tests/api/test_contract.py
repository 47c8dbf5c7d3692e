"""What the service answers is what api/openapi.yaml says, member by member; and so are the document's own examples."""

import json
import re

import pytest

from service import FIXTURE, ROOT, add_model, assert_problem, real_service  # noqa: F401

yaml = pytest.importorskip("yaml")
jsonschema = pytest.importorskip("jsonschema")
DOCUMENT = yaml.safe_load((ROOT / "api" / "openapi.yaml").read_text())
CANDIDATES = [{"method": "hqq", "bits": [2, 3], "group": 64}, {"method": "none"}]


def closed(node):
    """Every object that lists its members has no others: the document must name all that is sent."""
    if isinstance(node, list):
        return [closed(n) for n in node]
    if not isinstance(node, dict):
        return node
    node = {k: closed(v) for k, v in node.items()}
    if isinstance(node.get("properties"), dict) and "type" in node:
        node.setdefault("additionalProperties", False)
    return node


SCHEMAS = closed(DOCUMENT["components"])


def validate(value, schema):
    jsonschema.Draft202012Validator({**closed(schema), "components": SCHEMAS}).validate(value)


def schema_of(method, path, status, type_="application/json"):
    response = DOCUMENT["paths"][path][method]["responses"][str(status)]
    return response["content"][type_]["schema"]


def component(name):
    return {"$ref": f"#/components/schemas/{name}"}


def run(service, **spec):
    answer = service.ask("POST", "/v1/jobs", spec, {"Prefer": "wait=60"})
    assert answer.status == 202, answer.body
    return answer.json


def a_profile(**calibration):
    return {"kind": "profile", "model": "tiny", "candidates": CANDIDATES, "calibration": calibration}


def an_eval(**members):
    return {"kind": "eval", "model": "tiny", "dataset": "d", "length": 64, "windows": 3, **members}


@pytest.fixture(scope="module")
def jobs(real_service):
    """The id of one job of each sort, ended."""
    add_model(real_service, "tiny")
    real_service.put_dataset(text=(FIXTURE.parent / "heldout.txt").read_text())
    made = {}
    made["profile"] = run(real_service, **a_profile(dataset="d", samples=2, length=64))["id"]
    budget = {"vram": "4MiB", "context": 64}
    made["allocation"] = run(real_service, kind="allocation", profile=made["profile"], budget=budget)["id"]
    scored = a_profile(dataset="d", samples=2, length=64)
    made["around"] = run(real_service, **scored, around=made["allocation"])["id"]
    made["again"] = run(real_service, kind="allocation", profile=made["around"], budget=budget)["id"]
    made["eval"] = run(real_service, **an_eval(allocation=made["allocation"]))["id"]
    uniform = {"method": "rtn", "bits": 3, "group": 64}
    made["compare"] = run(real_service, **an_eval(uniform=uniform, compare=made["eval"]))["id"]
    made["reference"] = run(real_service, **an_eval())["id"]
    calibration = {"dataset": "d", "samples": 2, "length": 64}
    for method in ("gptq", "awq"):
        recipe = {"method": method, "bits": 4, "group": 64}
        made[method] = run(real_service, **an_eval(uniform=recipe, calibration=calibration))["id"]
    artifact = {"kind": "quantize", "model": "tiny", "name": "tiny-4bit", "target": "compressed-tensors"}
    recipe = {"method": "awq+gptq", "bits": 4, "group": 64, "symmetric": True}
    made["quantize"] = run(real_service, **artifact, uniform=recipe, calibration=calibration)["id"]
    sweep = {"kind": "sweep", "model": "tiny", "dataset": "d", "length": 64, "windows": 2}
    made["sweep"] = run(real_service, **sweep, candidate={"method": "gptq", "bits": 3}, calibration=calibration)["id"]
    made["noise"] = run(real_service, **sweep, noise=0.1, layers="layers.0")["id"]
    made["artifact"] = run(real_service, **an_eval(artifact="tiny-4bit"))["id"]
    return made


def test_jobs_results_and_rows(real_service, jobs):
    for sort, id_ in jobs.items():
        for path, name in (("", "Job"), ("/result", None), ("/rows", None), ("/explain", "Explanation")):
            answer = real_service.ask("GET", f"/v1/jobs/{id_}{path}")
            assert answer.status == 200, (sort, answer.body)
            validate(answer.json, component(name) if name else schema_of("get", f"/v1/jobs/{{id}}{path}", 200))
        assert bool(real_service.rows(id_)) == (sort not in ("allocation", "again"))
        links = real_service.job(id_)["links"]
        assert all(real_service.ask("GET", link).status == 200 for link in links.values()) and len(links) == 5
    validate(real_service.ask("GET", "/v1/jobs?limit=2").json, component("JobList"))


def test_tables_say_the_same_in_every_format(real_service, jobs):
    for sort in ("profile", "eval", "sweep"):
        target = f"/v1/jobs/{jobs[sort]}/rows"
        rows = real_service.ask("GET", target).json["items"]
        lines = real_service.ask("GET", target + "?format=ndjson").body.splitlines()
        csv = real_service.ask("GET", target + "?format=csv").body.decode().split("\r\n")
        assert [json.loads(line) for line in lines] == rows
        assert csv[0].split(",") == list(rows[0]) and len(csv) == len(rows) + 2


def test_events(real_service, jobs):
    for id_ in jobs.values():
        answer = real_service.ask("GET", f"/v1/jobs/{id_}/events", headers={"Accept": "application/x-ndjson"})
        told = [json.loads(line) for line in answer.body.splitlines()]
        for event in told:
            validate(event, component("Event"))
        assert [e["id"] for e in told] == list(range(1, len(told) + 1))
        assert told[-1]["data"]["state"] == "succeeded"


def test_jobs_that_fail_say_where(real_service, jobs):
    """A dataset shorter than one window; an infeasible budget."""
    real_service.put_dataset("short", "Only a few words.\n")
    short = run(real_service, **an_eval(dataset="short", length=128))
    tight = run(real_service, kind="allocation", profile=jobs["profile"], budget={"weights": "1KiB"})
    profile = run(real_service, **a_profile(dataset="short", samples=1, length=128))
    for job, words in ((short, "128"), (tight, "smallest"), (profile, "128")):
        assert job["state"] == "failed" and words in job["error"]["message"], job["error"]
        validate(job, component("Job"))
        assert real_service.ask("GET", f"/v1/jobs/{job['id']}/result").status == 404


def test_everything_else(real_service, jobs):
    for method, path, target, body in (
        ("get", "/v1/datasets", "/v1/datasets", None),
        ("get", "/v1/datasets/{name}", "/v1/datasets/d", None),
        ("get", "/v1/models", "/v1/models", None),
        ("get", "/v1/models/{name}", "/v1/models/tiny", None),
        ("post", "/v1/models/{name}/tokenize", "/v1/models/tiny/tokenize", {"text": "a", "special_tokens": False}),
        ("get", "/v1/cache", "/v1/cache", None),
        ("get", "/v1/devices", "/v1/devices", None),
        ("get", "/v1/version", "/v1/version", None),
        ("get", "/healthz", "/healthz", None),
        ("get", "/readyz", "/readyz", None),
        ("patch", "/v1/jobs/{id}", f"/v1/jobs/{jobs['eval']}", {"priority": 3}),
        ("delete", "/v1/cache", "/v1/cache?model=tiny", None),
    ):
        answer = real_service.ask(method.upper(), target, body)
        assert answer.status == 200, (target, answer.body)
        validate(answer.json, schema_of(method, path, 200))
    problem = real_service.ask("POST", "/v1/jobs", {"kind": "eval"})
    assert_problem(problem, 422, "/model")
    validate(problem.json, component("Problem"))


def examples(node, path=""):
    """(where, schema, value) of every example in the document that stands beside a schema."""
    if isinstance(node, list):
        for i, item in enumerate(node):
            yield from examples(item, f"{path}/{i}")
    if not isinstance(node, dict):
        return
    if "schema" in node:
        if "example" in node:
            yield path, node["schema"], node["example"]
        for reference in (node.get("examples") or {}).values():
            yield path, node["schema"], DOCUMENT["components"]["examples"][reference["$ref"].split("/")[-1]]["value"]
    for key, value in node.items():
        yield from examples(value, f"{path}/{key}")


def test_examples_are_valid():
    checked = 0
    for path, schema, value in examples(DOCUMENT):
        try:
            validate(value, schema)
        except jsonschema.ValidationError as e:
            pytest.fail(f"{path}: {e.message}")
        checked += 1
    assert checked > 30


def test_every_operation_shows_an_example_of_what_it_takes_and_gives():
    for path, item in DOCUMENT["paths"].items():
        for method in ("get", "put", "post", "patch", "delete"):
            contents = [item[method]["requestBody"]["content"]] if "requestBody" in item.get(method, {}) else []
            contents += [r.get("content", {}) for code, r in item.get(method, {}).get("responses", {}).items()
                         if re.match("2", code)]
            for type_, content in ((t, c) for content in contents for t, c in content.items()):
                assert {"example", "examples"} & set(content) or type_ == "*/*", f"{method} {path} {type_}"
