"""What waiting for a store costs: `inspect` over JPEGs that come after some milliseconds, one preparing thread.

python -m tests.benchmarks.latency [--images 256] [--milliseconds 30]
"""

from __future__ import annotations

import argparse
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa

from labelmill.operators.applying.apply import Job, apply
from labelmill.operators.applying.fetch_ahead import UNDER_WAY, FetchAhead
from labelmill.operators.applying.shard_images import ShardImages
from labelmill.operators.applying.worker import Worker
from labelmill.operators.inspect import Inspect
from tests.drawing import encode, noise


def rate(files: list[bytes], seconds: float, ahead: bool) -> float:
    """Images a second."""

    def fetch(uri: str) -> bytes:
        time.sleep(seconds)
        return files[int(uri)]

    uris = [str(row) for row in range(len(files))]
    rows = pa.table({"image_id": pa.array(range(1, len(files) + 1), pa.int64()), "key": uris})
    with ThreadPoolExecutor(UNDER_WAY) as pool:
        images = ShardImages(uris, fetch, ahead=FetchAhead(fetch, pool) if ahead else None)
        started = time.perf_counter()
        apply(Job(Worker(Inspect(Inspect.Params())), rows, np.ones(len(files), bool)), images, threads=1)
        return len(files) / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--milliseconds", type=float, default=30)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    different = [encode(noise(seed, 640, 480), "JPEG") for seed in range(16)]
    files = [different[row % 16] for row in range(arguments.images)]
    rate(files[:16], 0, ahead=False)
    for _ in range(arguments.rounds):
        here = rate(files, 0, ahead=False)
        alone = rate(files, arguments.milliseconds / 1000, ahead=False)
        ahead = rate(files, arguments.milliseconds / 1000, ahead=True)
        print(
            f"images/s at 0 ms {here:.0f}; at {arguments.milliseconds:.0f} ms {alone:.0f} one after the other, "
            f"{ahead:.0f} ahead: {ahead / here:.2f} of the rate at 0 ms"
        )


if __name__ == "__main__":
    main()
