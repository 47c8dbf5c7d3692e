"""A disk that is really full, and one that is read-only: a small file system of its own beneath the data folder."""

import os
import subprocess

import pytest

from conftest import Daemon

SPEC = {"kind": "eval", "model": "org/m", "dataset": "d", "label": "rows=1"}


class SmallDisk:
    def __init__(self, path):
        self.path, self.filler = path, path / "filler"
        path.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(path)]
        if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
            pytest.skip("mounting a small file system takes root")

    def fill(self):
        with open(self.filler, "ab", buffering=0) as file:
            for size in (65536, 4096, 1):
                try:
                    while file.write(b"x" * size) == size:
                        pass
                except OSError:
                    pass

    def unmount(self):
        subprocess.run(["umount", str(self.path)], check=True)


@pytest.fixture
def disk(tmp_path):
    small = SmallDisk(tmp_path / "data")
    yield small
    small.unmount()


@pytest.fixture
def daemon(tmp_path, disk):
    d = Daemon(tmp_path)
    d.put_dataset()
    yield d
    d.stop()


def post_until_refused(daemon):
    """The ids that were acknowledged until the disk refused one: the database may have some room left."""
    ids = []
    for _ in range(1000):
        answer = daemon.ask("POST", "/v1/jobs", SPEC)
        if answer.status != 202:
            assert answer.status == 507 and answer.headers["Content-Type"] == "application/problem+json", answer.body
            return ids
        ids.append(answer.json["id"])
    raise AssertionError("the disk never was full")


def check_refused_and_readable(daemon, kept):
    for method, target in (("PUT", "/v1/datasets/e"), ("POST", f"/v1/jobs/{kept}/retry"), ("GET", "/readyz")):
        answer = daemon.ask(method, target, "x" * 10000 if method == "PUT" else None)
        assert answer.status in (507, 409), answer.body
    for target in (f"/v1/jobs/{kept}", f"/v1/jobs/{kept}/rows", "/v1/jobs", "/v1/datasets/d?content", "/healthz"):
        assert daemon.ask("GET", target).status == 200


def test_a_full_disk_refuses_writes_serves_reads_and_recovers(daemon, disk):
    kept = daemon.submit("rows=1", wait=10)["id"]
    running = daemon.submit("rows=30 slow=50")["id"]
    daemon.until(lambda: daemon.rows(running))
    disk.fill()
    acknowledged = post_until_refused(daemon)
    check_refused_and_readable(daemon, kept)
    assert not list((daemon.data / "datasets").glob(".upload-*"))
    disk.filler.unlink()
    daemon.until(lambda: daemon.ask("GET", "/readyz").status == 200)
    acknowledged.append(daemon.submit("rows=1")["id"])
    assert daemon.wait_for(running, "succeeded", seconds=30)["attempt"] == 1
    assert [row["window"] for row in daemon.rows(running)] == list(range(30))
    assert all(daemon.wait_for(id_, "succeeded", seconds=30) for id_ in acknowledged)


def test_killed_on_a_full_disk_nothing_acknowledged_is_lost(daemon, disk):
    running = daemon.submit("rows=30 slow=50")["id"]
    daemon.until(lambda: daemon.rows(running))
    disk.fill()
    acknowledged = post_until_refused(daemon)
    rows = daemon.rows(running)
    daemon.kill()
    daemon.start()  # still full: it serves what there is
    assert daemon.rows(running)[: len(rows)] == rows
    assert all(daemon.ask("GET", f"/v1/jobs/{id_}").status == 200 for id_ in acknowledged)
    disk.filler.unlink()
    assert all(daemon.wait_for(id_, "succeeded", seconds=30) for id_ in [running, *acknowledged])
    assert daemon.rows(running)[: len(rows)] == rows and len(daemon.rows(running)) == 30


def test_folders_that_are_read_only_are_refused_in_words(tmp_path, disk):
    daemon = Daemon(tmp_path)
    assert daemon.stop() == 0
    subprocess.run(["mount", "-o", "remount,ro", str(disk.path)], check=True)
    command, elsewhere = [str(part) for part in daemon.command()], str(tmp_path / "elsewhere")
    for options, said in (([], f"cannot write to the data folder {disk.path}"),
                          (["--data", elsewhere, "--artifacts", str(disk.path)], f"cannot use {disk.path}")):
        ended = subprocess.run(command + options, capture_output=True, text=True, timeout=20)
        assert ended.returncode == 1 and said in ended.stderr and "Read-only file system" in ended.stderr
