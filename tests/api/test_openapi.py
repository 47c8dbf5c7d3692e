"""api/openapi.yaml and the tables in the code say the same: routes, parameters, schemas, media types."""

import json
import re
import subprocess

import pytest

from service import BUILD, ROOT

yaml = pytest.importorskip("yaml")
DOCUMENT = yaml.safe_load((ROOT / "api" / "openapi.yaml").read_text())
IGNORED = {"title", "description", "example", "examples", "format", "discriminator"}
METHODS = ("get", "put", "post", "patch", "delete")


@pytest.fixture(scope="module")
def routes():
    text = subprocess.run([BUILD / "hsaqd", "--describe"], check=True, capture_output=True).stdout
    return {r["id"]: r for r in json.loads(text)["routes"]}


def resolve(node):
    if isinstance(node, list):
        return [resolve(n) for n in node]
    if not isinstance(node, dict):
        return node
    if "$ref" in node:
        target = DOCUMENT
        for part in node["$ref"].removeprefix("#/").split("/"):
            target = target[part]
        return resolve(target)
    return {k: resolve(v) for k, v in node.items()}


def operations():
    for path, item in DOCUMENT["paths"].items():
        for method in METHODS:
            if method in item:
                operation = resolve(item[method])
                operation["parameters"] = resolve(item.get("parameters", [])) + operation.get("parameters", [])
                yield method.upper(), path, operation


def plain(schema):
    """A schema without its prose, in one order."""
    if isinstance(schema, list):
        return [plain(s) for s in schema]
    if not isinstance(schema, dict):
        return float(schema) if isinstance(schema, (int, float)) and not isinstance(schema, bool) else schema
    out = {}
    for key, value in schema.items():
        if key in ("properties", "patternProperties"):
            out[key] = {k: plain(v) for k, v in value.items()}
        elif key == "required":
            if value:
                out[key] = sorted(value)
        elif key not in IGNORED:
            out[key] = plain(value)
    if "oneOf" in out:
        out["oneOf"] = sorted(out["oneOf"], key=json.dumps)
    return out


def test_routes_agree(routes):
    code = {(r["method"], re.sub(r"\*}", "}", r["path"]), r["id"]) for r in routes.values()}
    assert code == {(method, path, o["operationId"]) for method, path, o in operations()}


def test_query_parameters_agree(routes):
    for method, path, operation in operations():
        table = routes[operation["operationId"]]["query"] or {"properties": {}}
        code = {k: plain({x: y for x, y in v.items() if x != "default"}) for k, v in table["properties"].items()}
        document = {p["name"]: p["schema"] for p in operation["parameters"] if p["in"] == "query"}
        assert set(code) == set(document), f"{method} {path}"
        for name, schema in document.items():
            for key in ("type", "enum"):
                assert code[name].get(key) == schema.get(key), f"{method} {path}?{name} {key}"
            for key in ("minimum", "maximum"):
                if key in schema:
                    assert code[name].get(key) == schema[key], f"{method} {path}?{name} {key}"


def test_bodies_agree(routes):
    for method, path, operation in operations():
        code = routes[operation["operationId"]]
        content = operation.get("requestBody", {}).get("content", {})
        assert (code["body_type"] != "none") == bool(content), f"{method} {path}"
        if code["body"] is not None:
            assert plain(content["application/json"]["schema"]) == plain(code["body"]), f"{method} {path}"


def test_media_types_agree(routes):
    for method, path, operation in operations():
        types = set()
        for status, response in operation["responses"].items():
            if status[0] == "2":
                types |= set(response.get("content", {}))
        code = set(re.split(r", *", routes[operation["operationId"]]["produces"]))
        assert types in (code, set()), f"{method} {path}"


def test_path_parameters_are_described():
    for method, path, operation in operations():
        named = {p["name"] for p in operation["parameters"] if p["in"] == "path"}
        assert named == set(re.findall(r"{(\w+)}", path)), f"{method} {path}"


def test_errors_are_problems():
    for method, path, operation in operations():
        assert "default" in operation["responses"], f"{method} {path}"
        for status, response in operation["responses"].items():
            if status[0] in "45d":
                assert list(response["content"]) == ["application/problem+json"], f"{method} {path} {status}"


def references(node):
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        for value in node.values():
            yield from references(value)
    if isinstance(node, list):
        for item in node:
            yield from references(item)


def test_schemas_are_valid_and_references_lead_somewhere():
    jsonschema = pytest.importorskip("jsonschema")
    for name, schema in DOCUMENT["components"]["schemas"].items():
        jsonschema.Draft202012Validator.check_schema(schema)
    for reference in references(DOCUMENT):
        target = DOCUMENT
        for part in reference.removeprefix("#/").split("/"):
            assert part in target, reference
            target = target[part]


def test_document_is_valid():
    validator = pytest.importorskip("openapi_spec_validator")
    validator.validate(DOCUMENT)
