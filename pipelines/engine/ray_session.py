"""A connection to Ray: to a cluster that is there, or to one on this machine for the run."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from labelmill import IMPORT_PATH
from labelmill.pipelines.errors import UserError


@contextmanager
def ray_session(address: str | None, cpus: int | None, verbose: bool) -> Iterator[None]:
    """Connect to a cluster, or start one on this machine and stop it at the end.

    Args:
        address: ``auto``, ``host:port`` or ``ray://…``; None for the one in RAY_ADDRESS, or a new local one.
        cpus: CPUs of a new local cluster; None for all of the machine's.
        verbose: Let Ray's own messages through.
    """
    if not verbose:
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # Or a thread that still waits for something when a run is stopped would start a cluster of its own.
    os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
    import ray

    before = os.environ.get("PYTHONPATH")
    address = address or os.environ.get("RAY_ADDRESS")
    level = logging.INFO if verbose else logging.ERROR
    common: dict[str, Any] = {"logging_level": level, "log_to_driver": verbose, "configure_logging": True}
    try:
        if address:
            ray.init(address=address, **common)
        else:
            # Workers of a local cluster inherit the environment, and so find this checkout wherever it is.
            checkout = str(IMPORT_PATH)
            known = os.environ.get("PYTHONPATH", "").split(os.pathsep)
            os.environ["PYTHONPATH"] = os.pathsep.join(
                [checkout, *(path for path in known if path not in ("", checkout))]
            )
            _start_local(cpus, common)
    except ConnectionError as error:
        raise UserError(f"there is no Ray cluster at {address}: {error}") from error
    try:
        _quiet(verbose)
        yield
    finally:
        with _no_stderr(not verbose):
            ray.shutdown()
        if before is None:
            os.environ.pop("PYTHONPATH", None)
        else:
            os.environ["PYTHONPATH"] = before


def _start_local(cpus: int | None, common: dict[str, Any]) -> None:
    """Start a cluster on this machine. Ray gives its first process 30 s, which on a busy machine may be too few."""
    import ray

    for attempts_left in (2, 1, 0):
        try:
            with _no_stderr(not common["log_to_driver"]):
                ray.init(address="local", num_cpus=cpus, include_dashboard=False, **common)
            return
        except Exception as error:
            ray.shutdown()
            if "timed out during startup" not in str(error):
                raise
            if not attempts_left:
                raise UserError("Ray did not start within three times 30 s; is the machine overloaded?") from error


@contextmanager
def _no_stderr(quiet: bool) -> Iterator[None]:
    """Ray's C++ part announces its log level there before it obeys it."""
    if not quiet:
        yield
        return
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _quiet(verbose: bool) -> None:
    from ray.data import DataContext

    context = DataContext.get_current()
    context.enable_progress_bars = verbose
    context.print_on_execution_start = verbose
    context.op_resource_reservation_enabled = False
    context.execution_no_progress_timeout_s = -1  # `ray_news.Watch` sees more
    context.target_max_block_size = None
    context.raise_original_map_exception = True
    if not verbose:
        for name in ("ray.data", "ray"):
            logging.getLogger(name).setLevel(logging.ERROR)
