#!/usr/bin/env python3
"""A worker that speaks base/protocol.h and does what the job's label says, for tests of the service.

Labels are words joined by blanks:
  rows=N       sends N rows (those of earlier attempts are kept), then a result
  slow=MS      waits so long before each row
  crash=K      exits with status 3 before row K, in the first attempt only; crash-always=K in every one
  babble       says a lot on stderr before it crashes, cut within a letter by whoever keeps the end of it
  hang         never answers a cancel, and goes on beating
  mute         stops beating and answering
  twice        sends its first row twice
  ragged       sends rows each with a key of its own
  garbage      sends a line that is no message
  fail         ends with an error

Its devices are the cpu and FAKE_CARDS (2: cuda:0 and cuda:1; "hang", "fail" and "garbage" tell how it does not say).
FAKE_BROKEN names a device on which it ends before its hello.
"""
import argparse
import json
import os
import select
import socket
import sys
import threading
import time

ROWS = 3


class Cancelled(Exception):
    pass


class Worker:
    def __init__(self, fd):
        self.socket = socket.socket(fileno=fd)
        self.lock = threading.Lock()
        self.buffer = b""
        self.mute = False

    def send(self, type_, **members):
        line = json.dumps({"type": type_, **members}).encode() + b"\n"
        with self.lock:
            self.socket.sendall(line)

    def receive(self, timeout):
        """One message, or None when none came in time."""
        while b"\n" not in self.buffer:
            if not select.select([self.socket], [], [], timeout)[0]:
                return None
            data = self.socket.recv(1 << 16)
            if not data:
                os._exit(0)
            self.buffer += data
        line, self.buffer = self.buffer.split(b"\n", 1)
        return json.loads(line)

    def beat(self):
        while True:
            time.sleep(1)
            if not self.mute:
                self.send("heartbeat")

    def pause(self, seconds, stoppable=True):
        message = self.receive(seconds)
        if message and message["type"] == "cancel" and stoppable:
            raise Cancelled

    def run(self, job):
        words = dict((w.partition("=")[0], w.partition("=")[2]) for w in job["spec"].get("label", "").split())
        id_, attempt = job["job"], job["attempt"]
        done = {row["index"] for row in job.get("rows", [])}
        count = int(words.get("rows", ROWS))
        if "garbage" in words:
            with self.lock:
                self.socket.sendall(b"this is no message\n")
        if "fail" in words:
            self.send("error", job=id_, code="invalid", message="told to fail")
            return
        while "hang" in words:
            self.pause(1, stoppable=False)
        if "mute" in words:
            self.mute = True
            time.sleep(3600)
        for index in range(count):
            for word, always in (("crash", False), ("crash-always", True)):
                if words.get(word) == str(index) and (always or attempt == 1):
                    print("ä" * 3000 + "." if "babble" in words else "", file=sys.stderr)
                    print("crashing as told", file=sys.stderr, flush=True)
                    os._exit(3)
            if index not in done:
                self.pause(int(words.get("slow", 0)) / 1000)
                self.send("progress", job=id_, phase="rows", unit="rows", done=index, total=count)
                row = {"window": index, "tokens": 10, "nll": index / 7, "made_in": attempt}
                if "ragged" in words:
                    row[f"only,{index}"] = index
                for _ in range(2 if "twice" in words and index == 0 else 1):
                    self.send("row", job=id_, phase="rows", index=index, data=row)
        self.send("log", level="info", text="all rows done")
        self.send("result", job=id_, result={"rows": count, "inputs": sorted(job.get("inputs", {})),
                                             "dataset": job.get("dataset"),
                                             "calibration": job.get("calibration"),
                                             "artifact": job.get("artifact"), "model": job.get("model")})

    def serve(self, device, vram_limit, precision):
        arithmetic = "cpu/fp32" if device == "cpu" else f"cuda/{precision}"
        hardware = f"a script within {vram_limit} bytes" if vram_limit else "a script"
        self.send("hello", version=1, pid=os.getpid(), build="fake", device=device, arithmetic=arithmetic,
                  hardware=hardware, memory=1)
        threading.Thread(target=self.beat, daemon=True).start()
        while True:
            message = self.receive(None)
            if message["type"] == "shutdown":
                return
            if message["type"] == "start":
                try:
                    self.run(message)
                except Cancelled:
                    self.send("error", job=message["job"], code="cancelled", message="cancelled")


def print_devices():
    cards = os.environ.get("FAKE_CARDS", "0")
    if cards == "hang":
        time.sleep(3600)
    if cards == "fail":
        sys.exit("there is no command devices")
    if cards == "garbage":
        print("no JSON")
        return
    devices = [{"name": "cpu", "hardware": "a script", "memory": 1}]
    devices += [{"name": f"cuda:{i}", "hardware": f"card {i}", "memory": 1 << 34} for i in range(int(cards))]
    unusable = [] if cards != "0" else [{"name": "cuda", "reason": "nobody has put a card in"}]
    print(json.dumps({"ok": {"devices": devices, "unusable": unusable}}))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("command")
    parser.add_argument("--fd", type=int)
    parser.add_argument("--device")
    parser.add_argument("--devices")
    parser.add_argument("--scratch")
    parser.add_argument("--ram-limit")
    parser.add_argument("--vram-limit")
    parser.add_argument("--precision", default="bf16")
    arguments = parser.parse_args()
    if arguments.command == "devices":
        print_devices()
        return
    device = arguments.devices or arguments.device
    if device == os.environ.get("FAKE_BROKEN"):
        sys.exit("this device is broken")
    Worker(arguments.fd).serve(device, arguments.vram_limit, arguments.precision)


if __name__ == "__main__":
    main()
