"""One side of `tests.benchmarks.compare`: what to do comes as JSON, and so goes what was found and how long it took.

Every side runs as a script in a process of its own, most of them with a Python that has none of this project's
packages; so this imports nothing but the standard library. Only the work is timed: not starting, importing, opening a
model or putting the answer into words.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

Request = Mapping[str, Any]
"""What is asked.

`task`: one of ``copies``, ``issues``, ``hashes``, ``vectors``. `images`: a folder; or `hashes`: a .npy of uint64 (n,);
or `vectors`: a .npy of float32 (n, d), unit length. `distance`, `threshold`: what is a copy; `by`, `same`: how this
project finds copies of pictures, and the least cosine of theirs. `scratch`: an empty folder. `answer`: the file to
write.
"""

Task = Callable[[Request], tuple[Callable[[], Any], Callable[[Any], dict[str, Any]]]]
"""Gets ready; gives what is to be timed, and what puts its result into words.

The words are, for ``copies`` `pairs`: file names of two pictures that are copies of each other; for ``issues`` `pairs`
and `issues`: issue to file names; for ``hashes`` and ``vectors`` `removed`: the rows that it would remove.
"""


def serve(tasks: Mapping[str, Task], version: str) -> None:
    """Do what the file named on the command line asks for."""
    request = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    work, tell = tasks[request["task"]](request)
    began, spent = time.perf_counter(), _cpu_seconds()
    result = work()
    seconds, cpu_seconds = time.perf_counter() - began, _cpu_seconds() - spent
    answer = {"version": version, "seconds": seconds, "cpu_seconds": cpu_seconds, **tell(result)}
    Path(request["answer"]).write_text(json.dumps(answer), encoding="utf-8")


def pairs_of(sets: list[list[str]]) -> list[list[str]]:
    """Of each set the first with each other."""
    return [[members[0], other] for members in sets for other in members[1:]]


def _cpu_seconds() -> float:
    """Of this process and of those that it started and that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)
