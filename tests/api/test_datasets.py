"""Datasets: uploads arrive whole or not at all, and are known by their SHA-256."""

import hashlib
import time

from service import assert_problem, service  # noqa: F401

TEXT = "Grüße, world.\n" * 1000


def test_upload_read_replace_delete(service):
    created = service.ask("PUT", "/v1/datasets/a", TEXT.encode())
    assert created.status == 201 and created.headers["Location"] == "/v1/datasets/a"
    digest = hashlib.sha256(TEXT.encode()).hexdigest()
    assert created.json["sha256"] == digest and created.json["bytes"] == len(TEXT.encode())
    assert service.ask("PUT", "/v1/datasets/a", TEXT.encode()).status == 200
    replaced = service.ask("PUT", "/v1/datasets/a", b"other")
    assert replaced.status == 200 and replaced.json["bytes"] == 5
    about = service.ask("GET", "/v1/datasets/a")
    assert about.json["sha256"] == hashlib.sha256(b"other").hexdigest()
    assert service.ask("GET", "/v1/datasets/a", headers={"If-None-Match": about.headers["ETag"]}).status == 304
    assert service.ask("GET", "/v1/datasets/a?content").body == b"other"
    assert service.ask("GET", "/v1/datasets/a", headers={"Accept": "text/plain"}).body == b"other"
    assert service.ask("DELETE", "/v1/datasets/a").status == 204
    assert_problem(service.ask("GET", "/v1/datasets/a"), 404)
    assert_problem(service.ask("DELETE", "/v1/datasets/a"), 404)


def test_large_and_chunked_uploads(service):
    big = b"0123456789abcde\n" * (1 << 18)
    assert service.ask("PUT", "/v1/datasets/big", big).json["sha256"] == hashlib.sha256(big).hexdigest()
    pieces = iter([b"one ", b"two"])
    assert service.ask("PUT", "/v1/datasets/pieces", pieces).json["bytes"] == 7


def test_list_pages(service):
    for name in ("p1", "p2", "p3"):
        service.ask("PUT", f"/v1/datasets/{name}", b"x")
    seen, cursor = [], ""
    while cursor is not None:
        page = service.ask("GET", f"/v1/datasets?limit=2&cursor={cursor}").json if cursor else service.ask(
            "GET", "/v1/datasets?limit=2").json
        seen += [d["name"] for d in page["items"]]
        cursor = page["next"]
    assert seen == sorted(seen) and {"p1", "p2", "p3"} <= set(seen)
    assert_problem(service.ask("GET", "/v1/datasets?limit=0"), 422, "?limit")
    for beyond in ("99999999999999999999", "-99999999999999999999", "9223372036854775807"):
        refused = service.ask("GET", f"/v1/datasets?limit={beyond}")
        assert_problem(refused, 422, "?limit")
        assert "must be between 1 and" in refused.body.decode()


def test_what_is_no_dataset(service):
    assert_problem(service.ask("PUT", "/v1/datasets/empty", b""), 422)
    assert_problem(service.ask("PUT", "/v1/datasets/binary", b"ab\xff\xfe"), 422)
    assert_problem(service.ask("PUT", "/v1/datasets/cut", "ü".encode()[:1]), 422)
    assert_problem(service.ask("PUT", "/v1/datasets/surrogate", b"\xed\xa0\x80"), 422)
    for name in (".hidden", "a%2Fb", "%2e%2e", "x" * 129, "a%20b"):
        assert_problem(service.ask("PUT", f"/v1/datasets/{name}", b"x"), 422)
    assert_problem(service.ask("PUT", "/v1/datasets/a%00b", b"x"), 400)
    assert_problem(service.ask("GET", "/v1/datasets/empty"), 404)


def test_an_upload_cut_short_leaves_nothing(service):
    with service.dial() as s:
        s.sendall(b"PUT /v1/datasets/half HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\nhalf")
        time.sleep(0.2)
    folder = service.folder / "data" / "datasets"
    for _ in range(50):
        if not list(folder.glob(".upload-*")):
            break
        time.sleep(0.1)
    assert not list(folder.glob(".upload-*"))
    assert_problem(service.ask("GET", "/v1/datasets/half"), 404)
