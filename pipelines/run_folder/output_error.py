"""What is said when the files of a run cannot be written or read: one sentence, with what to do."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from labelmill.operators.moment import kind_of
from labelmill.pipelines.errors import UserError

KEPT = "what was finished is kept: then run the same command again"

_FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}
_FORBIDDEN = {errno.EROFS, errno.EACCES, errno.EPERM}


class OutputError(UserError, OSError):
    """The output cannot be written or read; says why, and what to do."""

    exit_status = 1


def removed(address: str) -> OutputError:
    """The error where somebody took the output away."""
    return OutputError(
        f"the output {address} was removed or unmounted while the run was at work; mount it again to go on, or run the "
        "same command again to begin anew"
    )


def output_error(error: BaseException, address: str) -> OutputError | None:
    """What an exception says about the output or the disk below it; None where it says nothing of them."""
    link: BaseException | None = error
    while link is not None and not (isinstance(link, OSError) and link.errno is not None):
        link = link.__cause__ or getattr(link, "cause", None)  # Ray keeps what a worker raised there
    code = link.errno if isinstance(link, OSError) else None
    if code in _FULL:
        where = _place(link, address)
        return OutputError(f"no space is left {where}; free some: {KEPT}")
    if code in _FORBIDDEN and is_below(link, address):
        assert isinstance(link, OSError)
        return OutputError(
            f"the output {address} cannot be written: {link.strerror}; make it writable, or choose another output"
        )
    return None


def _place(error: BaseException | None, address: str) -> str:
    named = getattr(error, "filename", None)
    if isinstance(named, str) and not is_below(error, address):
        return f"for {named}"
    if named is None:
        return f"for the output {address}, or for temporary files in {tempfile.gettempdir()}"
    return f"for the output {address}"


def is_below(error: BaseException | None, address: str) -> bool:
    """Whether an exception names a file of the output."""
    named = getattr(error, "filename", None)
    root = os.path.abspath(address.removeprefix("file://"))
    return isinstance(named, str) and os.path.abspath(named).startswith(root)


@contextmanager
def telling(address: str, doing: str) -> Iterator[None]:
    """Turn what a file system raises into an `OutputError`; FileNotFoundError is an answer and stays.

    Args:
        address: Of the output.
        doing: "written" or "read".
    """
    try:
        yield
    except (FileNotFoundError, UserError):
        raise
    except Exception as error:
        known = output_error(error, address)
        if known is not None:
            raise known from error
        if kind_of(error) == "network":
            raise OutputError(
                f"the output {address} cannot be reached: {_text(error)}. See that it can; {KEPT}"
            ) from error
        if isinstance(error, OSError):
            raise OutputError(f"the output {address} cannot be {doing}: {_text(error)}; {KEPT}") from error
        raise


def _text(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return (str(error).strip() or type(error).__name__).partition("\n")[0]
