"""Requests of many clients against an operator's own batch loop: ``python -m tests.benchmarks.serve``.

The server runs in a process of its own, as ``labelmill serve`` starts it; the clients are tasks of this process that
send bodies made before. All share the machine's cores, so beside images per second the CPU seconds of an image are
told, which neighbours disturb less.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa

CLASSES = ["car", "face", "sign", "tree"]
CASES = {
    "embed": ("clip-miniature", "/clip/embed_image", {}),
    "detect": ("grounding-dino-miniature", "/grounding_dino/infer", {"text": CLASSES, "box_threshold": 0.3}),
}


@dataclass(frozen=True)
class Rate:
    """Images per second, and CPU seconds of the process that computes them per image."""

    images: float
    cpu: float


def main(arguments: list[str] | None = None) -> None:
    """Measure both cases, or one of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=tuple(CASES))
    parser.add_argument("--images", type=int, default=384)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args(arguments)
    from labelmill.operators.miniatures.write import write_world

    with tempfile.TemporaryDirectory() as folder:
        write_world(Path(folder), 48, 11, size=320, duplicates=0, bad=0)
        files = [path.read_bytes() for path in sorted((Path(folder) / "images").rglob("*")) if path.is_file()]
        files = (files * (given.images // len(files) + 1))[: given.images]
        for name in CASES if given.only is None else (given.only,):
            measure(name, files, given.clients, given.rounds)


def measure(name: str, files: list[bytes], clients: int, rounds: int) -> None:
    """Print what one case gives, the loop and the server in turn."""
    card, route, fields = CASES[name]
    bodies = [json.dumps({**fields, "image": {"type": "base64", "value": base64.b64encode(data).decode()}}).encode()
              for data in files]  # fmt: skip
    loops, many, single, waits = [], [], [], []
    with served(card) as (process, port):
        asyncio.run(ask(port, route, bodies[:64], clients))
        for _ in range(rounds):
            loops.append(own_loop(name, card, files))
            many.append(timed(process, port, route, bodies, clients))
            single.append(timed(process, port, route, bodies[: len(bodies) // 4], 1))
            waits.append(asyncio.run(at_rate(port, route, bodies, many[-1].images / 2)))
    loop, batched, alone = (np.median([each.images for each in part]) for part in (loops, many, single))
    cpu_loop, cpu_many = (np.median([each.cpu for each in part]) for part in (loops, many))
    p50, p99 = np.median([np.percentile(each, [50, 99]) for each in waits], axis=0)
    print(f"{name} ({card}), {len(files)} images, {rounds} rounds, medians")
    print(f"  own loop {loop:.0f} images/s, {1000 * cpu_loop:.2f} CPU ms an image")
    print(f"  {clients} clients {batched:.0f} images/s, {1000 * cpu_many:.2f} CPU ms an image: "
          f"{batched / loop:.2f} of the loop by the clock, {cpu_loop / cpu_many:.2f} by CPU")  # fmt: skip
    print(f"  one at a time {alone:.0f} images/s: {batched / alone:.2f} times as fast together")
    print(f"  at half that rate: p50 {1000 * p50:.1f} ms, p99 {1000 * p99:.1f} ms: {p99 / p50:.2f}", flush=True)


def own_loop(name: str, card: str, files: list[bytes]) -> Rate:
    """The operator over the same files as a run applies it, in this process, once warm."""
    import torch

    from labelmill.operators.applying.apply import Job, apply
    from labelmill.operators.applying.shard_images import ShardImages
    from labelmill.operators.applying.worker import Worker
    from labelmill.operators.detect import Detect
    from labelmill.operators.embed import Embed
    from labelmill.pipelines.config.cards import find_card

    torch.set_num_threads(1)
    operator: Any = (
        Embed(Embed.Params.model_validate({"model": find_card(card)}))
        if name == "embed"
        else Detect(Detect.Params.model_validate({"model": find_card(card), "ontology": CLASSES}))
    )
    operator.load()

    def once(count: int) -> None:
        rows = pa.table({"image_id": pa.array(range(count), pa.int64()), "key": [str(place) for place in range(count)]})
        images = ShardImages([str(place) for place in range(count)], lambda uri: files[int(uri)])
        table, _ = apply(Job(Worker(operator), rows, np.ones(count, dtype=bool)), images)
        assert set(table.column("decision").to_pylist()) == {"kept"}

    once(32)
    started, cpu = time.perf_counter(), time.process_time()
    once(len(files))
    return Rate(len(files) / (time.perf_counter() - started), (time.process_time() - cpu) / len(files))


@contextmanager
def served(card: str) -> Iterator[tuple[psutil.Process, int]]:
    """`labelmill serve CARD`, ready; its process and port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    checkout = str(Path(__file__).parents[2])
    command = [sys.executable, "-m", "labelmill", "serve", card, "--port", str(port), "--quiet"]
    began = time.perf_counter()
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": checkout}, stderr=subprocess.DEVNULL)
    try:
        while process.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                time.sleep(0.05)
        print(f"up after {time.perf_counter() - began:.1f} s")
        yield psutil.Process(process.pid), port
    finally:
        process.terminate()
        process.wait()


def timed(process: psutil.Process, port: int, route: str, bodies: list[bytes], clients: int) -> Rate:
    """All bodies, by so many clients."""
    before, started = process.cpu_times(), time.perf_counter()
    asyncio.run(ask(port, route, bodies, clients))
    seconds, after = time.perf_counter() - started, process.cpu_times()
    return Rate(len(bodies) / seconds, (after.user + after.system - before.user - before.system) / len(bodies))


async def ask(port: int, route: str, bodies: list[bytes], clients: int) -> None:
    """Each client sends the next body when its last one is answered."""
    waiting = iter(bodies)

    async def client() -> None:
        link = await asyncio.open_connection("127.0.0.1", port)
        for body in waiting:
            await one(link, route, body)
        link[1].close()

    await asyncio.gather(*(client() for _ in range(clients)))


async def at_rate(port: int, route: str, bodies: list[bytes], rate: float) -> list[float]:
    """Seconds that each body waits for its answer when they come at a rate, by chance (a Poisson process)."""
    gaps = np.random.default_rng(5).exponential(1 / rate, len(bodies))
    links: list[Any] = []
    taken: list[float] = []

    async def client(body: bytes) -> None:
        started = time.perf_counter()
        link = links.pop() if links else await asyncio.open_connection("127.0.0.1", port)
        await one(link, route, body)
        links.append(link)
        taken.append(time.perf_counter() - started)

    begun, due, tasks = time.perf_counter(), 0.0, []
    for body, gap in zip(bodies, gaps, strict=True):
        due += gap
        await asyncio.sleep(max(0.0, begun + due - time.perf_counter()))
        tasks.append(asyncio.create_task(client(body)))
    await asyncio.gather(*tasks)
    for _, writer in links:
        writer.close()
    return taken


async def one(link: tuple[asyncio.StreamReader, asyncio.StreamWriter], route: str, body: bytes) -> None:
    """One request over a connection that stays."""
    reader, writer = link
    head = f"POST {route} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    answer = await reader.readuntil(b"\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200"), answer
    length = next(line for line in answer.lower().split(b"\r\n") if line.startswith(b"content-length:"))
    await reader.readexactly(int(length.partition(b":")[2]))


if __name__ == "__main__":
    main()
