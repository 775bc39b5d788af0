"""`bash/bench.sh api`: how much the API takes, beside a bare FastAPI no-op, with the load generator and the broker on the same machine.

The broker and the API are those of the stack (`bash/stack.sh up --realtime`); the rounds of both alternate, and ratios are within a round.
"""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from etl.errors import RefusedError, WarehouseError
from etl.log import logger, run_main
from etl.settings import settings
from etl.stack import control, supervision
from tests.api.server import free_port, running
from tests.bench.__main__ import Bench, report

ROUNDS = 5
SECONDS = 8
POSTS_A_SECOND = 1_000
READERS = ("api", "stream", "notify")
NOOP = """
import sys, uvicorn
from fastapi import FastAPI
app = FastAPI()
@app.post("/transactions")
async def noop() -> dict[str, bool]:
    return {"ok": True}
uvicorn.run(app, port=int(sys.argv[1]), loop="uvloop", http="httptools", access_log=False, log_level="warning")
"""
ONE = (
    '{"transaction_id":%d,"customer_id":%d,"terminal_id":7,"transacted_at":"2026-01-02T03:04:05.123456Z",'
    '"amount":"57.16","currency":"EUR","channel":"chip","device":"card"}'
)


def wrk(folder: Path, port: int, key: str, connections: int, body: str) -> tuple[float, str]:
    """Return requests a second, and what wrk says of answers that are no success (empty: there were none)."""
    script = folder / "post.lua"
    headers = f'wrk.headers["Content-Type"] = "application/json"\nwrk.headers["Authorization"] = "Bearer {key}"\n'
    script.write_text(f'wrk.method = "POST"\n{headers}wrk.body = [==[{body}]==]\n')
    command = ["wrk", "-t1", f"-c{connections}", f"-d{SECONDS}s", "-s", str(script), f"http://127.0.0.1:{port}/transactions"]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    failed = re.search(r"Non-2xx.*|Socket errors.*", told)
    rate = re.search(r"Requests/sec: +(\S+)", told)
    if rate is None:
        raise WarehouseError(f"wrk told no rate: {told[-500:]}")
    return float(rate[1]), failed[0] if failed else ""


async def paced(port: int, key: str, connections: int = 16) -> float:
    """Post at a steady rate; return the 99th percentile in milliseconds, from the moment that a post was due."""
    streams = [await asyncio.open_connection("127.0.0.1", port) for _ in range(connections)]
    begun = time.perf_counter() + 0.1
    took: list[float] = []

    async def client(number: int) -> None:
        reader, writer = streams[number]
        for post in range(number, POSTS_A_SECOND * SECONDS, connections):
            due = begun + post / POSTS_A_SECOND
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            body = ONE % (post, post % 5_000)
            head = f"POST /transactions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\nContent-Type: application/json\r\n"
            writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
            answer = await reader.readuntil(b"\r\n\r\n")
            if not answer.startswith(b"HTTP/1.1 202"):
                raise WarehouseError(f"the API answered {answer[:40]!r} at {POSTS_A_SECOND} posts a second")
            length = re.search(rb"content-length: (\d+)", answer)
            await reader.readexactly(int(length[1]) if length else 0)
            took.append(time.perf_counter() - due)

    await asyncio.gather(*(client(number) for number in range(connections)))
    for _, writer in streams:
        writer.close()
    return sorted(took)[int(len(took) * 0.99)] * 1000


def main() -> int:
    """Measure and print; 1 when a bound is missed."""
    if not shutil.which("wrk"):
        raise RefusedError("wrk is needed: apt-get install wrk")
    control.up({"base", "realtime"})
    # What reads the topic is no part of the measurement.
    others = [name for name, info in supervision.states().items() if name in READERS and info["statename"] == "RUNNING"]
    for name in others:
        supervision.call("stopProcess", name)
    bench, folder, port = Bench(), Path(tempfile.mkdtemp()), free_port()
    posts, ratios, lists, latencies = [], [], [], []
    noop = subprocess.Popen([sys.executable, "-c", NOOP, str(port)])
    try:
        with running(folder) as api:
            api.await_ready()
            while socket.socket().connect_ex(("127.0.0.1", port)):
                time.sleep(0.1)
            whole = json.dumps([json.loads(ONE % (number, number)) for number in range(500)])
            for _ in range(ROUNDS):
                bare, _failed = wrk(folder, port, api.key, 64, ONE % (1, 1))
                single, failed = wrk(folder, api.port, api.key, 64, ONE % (1, 1))
                listed, failed_lists = wrk(folder, api.port, api.key, 16, whole)
                if failed or failed_lists:
                    raise WarehouseError(f"not every post was taken: {failed} {failed_lists}")
                latencies.append(asyncio.run(paced(api.port, api.key)))
                logger.info("round", noop=round(bare), single=round(single), listed=round(listed * 500), p99_ms=round(latencies[-1], 1))
                posts.append(single)
                ratios.append(single / bare)
                lists.append(listed * 500)
    finally:
        noop.terminate()
        shutil.rmtree(folder)
        for name in others:
            supervision.call("startProcess", name)
    bench.add("single posts, 64 connections, acknowledged", "1/s", 3_000, posts, is_least=True)
    bench.add("single posts / posts of a bare FastAPI no-op", "x", 0.5, ratios, is_least=True)
    bench.add("transactions in lists of 500, acknowledged", "1/s", 50_000, lists, is_least=True)
    bench.add(f"99th percentile at {POSTS_A_SECOND:,} posts a second", "ms", 50, latencies)
    settings().data_dir.mkdir(parents=True, exist_ok=True)
    return report(bench)


if __name__ == "__main__":
    run_main(main)
