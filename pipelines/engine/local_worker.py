"""What runs in the processes of a local run: one that others are forked from, and those others.

The first imports libraries and nothing else, so that it has one thread and no device when it forks; a worker starts
with everything imported and shares that memory with its siblings. Where forking is not safe (macOS, or a library that
starts threads), every worker is such a first process itself. None outlives the process that runs the pipeline.
"""

from __future__ import annotations

import os
import pickle
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from labelmill.pipelines.run_folder.layout import Layout
    from labelmill.pipelines.sources import Fetcher

CAN_FORK = sys.platform == "linux"


def main() -> None:
    """The first process. Its argument is the number of the file descriptor that orders come from."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all; the parent ends the others
    if CAN_FORK:
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # no zombies
    orders = Connection(int(sys.argv[1]))
    job = b""
    while True:
        try:
            order, *values = orders.recv()
        except EOFError:
            return
        if order == "path":
            sys.path[:] = values[0]
        elif order == "import":
            import_quietly(values[0])
        elif order == "job":
            job = values[0]
            with suppress(Exception):  # only so that modules are imported once; whoever works tells what is wrong
                pickle.loads(job)
        elif order == "fork":
            with Connection(recv_handle(orders)) as parent:
                if threads := _threads():
                    parent.send(("threads", threads))
                elif not os.fork():
                    orders.close()
                    _end_with_parent()
                    _work(parent, job, *values)
        elif order == "work":
            with Connection(recv_handle(orders)) as parent:
                threading.Thread(target=_end_at_eof, args=(orders,), daemon=True).start()
                _work(parent, job, *values)


def _threads() -> list[str]:
    """Names of threads besides this one, which a child would not have, and whose locks might stay closed in it.

    pyarrow's allocator has a thread that knows of forks.
    """
    names = [Path(f"/proc/self/task/{task}/comm").read_text().strip() for task in os.listdir("/proc/self/task")]
    names.remove(Path("/proc/self/comm").read_text().strip())
    return [name for name in names if name != "jemalloc_bg_thd"]


def import_quietly(modules: list[str]) -> None:
    """Import some modules (see `Operator.libraries`). What cannot be imported is told by whoever needs it."""
    import importlib

    for name in modules:
        module, _, function = name.partition(":")
        try:
            found = importlib.import_module(module)
            if function:
                getattr(found, function)()
        except Exception:
            continue


def _end_with_parent() -> None:
    """Have the kernel end this process when the one that it was forked from ends."""
    import ctypes

    parent = os.getppid()
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent or parent == 1:
        os._exit(1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def _end_at_eof(orders: Connection) -> None:
    try:
        orders.recv()
    except EOFError:
        os._exit(1)


def _work(parent: Connection, job: bytes, role: dict[str, Any], environment: dict[str, str]) -> NoReturn:
    """Do shard after shard, or one dataset step, and tell of it; then end."""
    os.environ.update(environment)
    try:
        parent.send(("here", os.getpid()))
        layout, fetch = pickle.loads(job)
        do = _dataset_step(layout, role) if "step" in role else _shards(layout, fetch, role)
        while True:
            do(parent.recv(), lambda news: parent.send(("news", news)))
            parent.send(("done",))
    except (BrokenPipeError, ConnectionResetError, EOFError):
        pass  # the parent needs this process no more
    except BaseException as error:
        parent.send(("failed", *_told(error)))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _shards(layout: Layout, fetch: Fetcher, role: dict[str, Any]) -> Callable[[Any, Any], Any]:
    from labelmill.pipelines.engine.work import ShardWorker, use_threads

    use_threads()
    return ShardWorker(layout, role["positions"], fetch, role["threads"]).run


def _dataset_step(layout: Layout, role: dict[str, Any]) -> Callable[[Any, Any], Any]:
    from labelmill.pipelines.engine.dataset_steps import run_dataset_step
    from labelmill.pipelines.engine.work import use_threads

    use_threads(role["cpus"])
    return lambda shards, tell: run_dataset_step(layout, layout.steps[role["step"]], shards, tell)


def _told(error: BaseException) -> tuple[BaseException, str]:
    """An exception as it can be sent, and its traceback."""
    import traceback

    trace = "".join(traceback.format_exception(error))
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}"), trace
    return error, trace


if __name__ == "__main__":
    main()
