"""Whether a failure is of the image or of the moment.

A failure *of the image* is an answer: the bytes are broken, the file is not there, the picture is too thin to detect
on. It comes out the same tomorrow. A failure *of the moment* says nothing about the image: the network, a busy server,
too little memory, too few file descriptors, a full disk, a lost accelerator. Such an image is left `undone`.

Libraries are recognised by the names of their exceptions, so that none is imported to look at one. An exception may
wrap the one that says it, as its cause; the outermost one that says anything is believed.
"""

from __future__ import annotations

import errno
import http.client
import socket
import ssl
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from typing import Any, Literal

from labelmill.operators.errors import RowError

Kind = Literal["network", "memory", "machine", "accelerator"]
"""What is lacking at the moment: a server or the way to it, memory, what else a machine has (descriptors, threads,
disk), or a GPU that this process can still use."""

PASSING_STATUS = {408, 425, 429}
"""HTTP statuses below 500 that ask to try again (RFC 9110, 6585, 8470)."""

_MACHINE = {
    getattr(errno, name)
    for name in ("EMFILE", "ENFILE", "ENOSPC", "EDQUOT", "EIO", "ESTALE", "EAGAIN", "ENOLCK", "EINTR")
    if hasattr(errno, name)
}
_NETWORK = {
    getattr(errno, name)
    for name in (
        *("ECONNABORTED", "ECONNREFUSED", "ECONNRESET", "EHOSTDOWN", "EHOSTUNREACH", "ENETDOWN", "ENETRESET"),
        *("ENETUNREACH", "ENOBUFS", "ENOTCONN", "EPIPE", "EREMOTEIO", "ESHUTDOWN", "ETIMEDOUT", "ENONET", "ECOMM"),
        "EBUSY",  # what s3fs makes of SlowDown
    )
    if hasattr(errno, name)
}

_STORE_CODES = {
    # Amazon's S3, docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html: busy, or in need of new credentials.
    *("SlowDown", "Throttling", "ThrottlingException", "RequestLimitExceeded", "BandwidthLimitExceeded"),
    *("RequestTimeout", "ServiceUnavailable", "InternalError", "OperationAborted", "RequestTimeTooSkewed"),
    *("ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "RequestExpired"),
}

_NETWORK_NAMES = {
    "aiohttp": {"ClientConnectionError", "ClientPayloadError"},
    "asyncio": {"IncompleteReadError"},
    "botocore": {"HTTPClientError", "ConnectionError", "ResponseStreamingError", "IncompleteReadError"}
    | {"NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError", "TokenRetrievalError"},
    "fsspec": {"FSTimeoutError"},
    "gcsfs": {"ChecksumError"},
    "google": {"TransportError", "RefreshError", "RetryError", "ServerError", "TooManyRequests"},
    "httpcore": {"NetworkError", "TimeoutException", "ProtocolError", "ProxyError"},
    "httpcore2": {"NetworkError", "TimeoutException", "ProtocolError", "ProxyError"},
    "httpx": {"NetworkError", "TimeoutException", "ProtocolError", "ProxyError"},
    "httpx2": {"NetworkError", "TimeoutException", "ProtocolError", "ProxyError"},
    "openai": {"APIConnectionError"},
    "requests": {"ConnectionError", "Timeout", "ChunkedEncodingError", "RetryError"},
    "urllib3": {"TimeoutError", "ProtocolError", "NewConnectionError", "MaxRetryError", "SSLError", "ProxyError"},
}
_MEMORY_NAMES = {
    "duckdb": {"OutOfMemoryException"},
    "torch": {"OutOfMemoryError"},
}
_OF_THE_IMAGE = {
    "aiohttp": {"InvalidURL"},
    "httpx": {"UnsupportedProtocol", "InvalidURL"},
    "httpx2": {"UnsupportedProtocol", "InvalidURL"},
    "httpcore": {"UnsupportedProtocol"},
    "httpcore2": {"UnsupportedProtocol"},
    "urllib3": {"LocationParseError"},
    "http": {"InvalidURL"},
}

_NO_MEMORY = ("out of memory", "can't allocate memory", "failed to allocate memory", "std::bad_alloc", "alloc_failed")
_LOST = ("cuda error", "cudnn_status_execution_failed", "cublas_status_execution_failed", "hip error", "mps backend")


class MomentError(RowError):
    """One image cannot be processed at the moment; its row becomes `undone`, with this message as the reason.

    Args:
        message: What is in the way.
        kind: What is lacking.
        retry_after: Seconds after which a server asks to be asked again; None where it says nothing.
    """

    def __init__(self, message: str, kind: Kind = "network", retry_after: float | None = None) -> None:
        super().__init__(message)
        self.kind: Kind = kind
        self.retry_after = retry_after

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.kind, self.retry_after)


def kind_of(error: BaseException) -> Kind | None:
    """What is lacking at the moment; None for a failure that is the image's own."""
    for link in _chain(error):
        kind = _judge(link)
        if kind is not None:
            return None if kind == "image" else kind
    return None


def retry_after(error: BaseException) -> float | None:
    """Seconds after which the server asks to be asked again (the header Retry-After, RFC 9110 10.2.3)."""
    for link in _chain(error):
        if isinstance(link, MomentError):
            return link.retry_after
        headers = getattr(link, "headers", None) or getattr(getattr(link, "response", None), "headers", None)
        seconds = _seconds(headers) if headers is not None else None
        if seconds is not None:
            return seconds
    return None


def accelerator_is_lost(error: BaseException) -> bool:
    """Whether a GPU is in a state that no retry in this process mends."""
    return kind_of(error) == "accelerator"


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An exception, those in it, and what it was raised from."""
    seen: set[int] = set()
    waiting = [error]
    while waiting:
        link = waiting.pop(0)
        if id(link) in seen:
            continue
        seen.add(id(link))
        yield link
        if isinstance(link, BaseExceptionGroup):
            waiting += link.exceptions
        if link.__cause__ is not None:
            waiting.append(link.__cause__)
        elif link.__context__ is not None and not link.__suppress_context__ and not isinstance(link, RowError):
            waiting.append(link.__context__)


def _judge(error: BaseException) -> Kind | Literal["image"] | None:
    """What one exception says by itself; None where it says nothing."""
    if isinstance(error, MomentError):
        return error.kind
    if isinstance(error, MemoryError):
        return "memory"
    if _named(error, _OF_THE_IMAGE):
        return "image"
    if _named(error, _MEMORY_NAMES):
        return "memory"
    by_text = _by_text(error)
    if by_text is not None:
        return by_text
    code = _store_code(error)
    if code in _STORE_CODES:
        return "network"
    status = _status(error)
    if status is not None:
        return "network" if status in PASSING_STATUS or status >= 500 else "image"
    if _named(error, _NETWORK_NAMES):
        return "network"
    if isinstance(error, http.client.HTTPException):
        return "network"
    return _by_errno(error) if isinstance(error, OSError) else None


def _by_errno(error: OSError) -> Kind | Literal["image"] | None:
    if isinstance(error, TimeoutError | ConnectionError | socket.gaierror | socket.herror | ssl.SSLError):
        return "network"
    if error.errno == errno.ENOMEM:
        return "memory"
    if error.errno in _NETWORK:
        return "network"
    if error.errno in _MACHINE:
        return "machine"
    if isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError):
        return "image"
    if isinstance(error, PermissionError):
        # An object store's "forbidden" may be a token that has expired: its own exception, the cause, says so.
        return None if error.__cause__ is not None else "image"
    return None


def _by_text(error: BaseException) -> Kind | None:
    """Errors that have only a text: torch's, ONNX Runtime's, OpenCV's, the interpreter's threads."""
    root = type(error).__module__.partition(".")[0]
    if root == "cv2":
        return "memory" if getattr(error, "code", 0) == -4 else None
    if not (isinstance(error, RuntimeError) or root == "onnxruntime"):
        return None
    text = str(error).lower()
    if any(words in text for words in _NO_MEMORY):
        return "memory"
    if any(words in text for words in _LOST):
        return "accelerator"
    return "machine" if "can't start new thread" in text else None


def _named(error: BaseException, names: dict[str, set[str]]) -> bool:
    return any(cls.__name__ in names.get(cls.__module__.partition(".")[0], ()) for cls in type(error).__mro__)


def _store_code(error: BaseException) -> str | None:
    """The code that an object store gave, of a botocore ClientError."""
    response = getattr(error, "response", None)
    told = response.get("Error") if isinstance(response, dict) else None
    return str(told.get("Code")) if isinstance(told, dict) else None


def _status(error: BaseException) -> int | None:
    """The HTTP status that an exception is about, 400…599."""
    response: Any = getattr(error, "response", None)
    if isinstance(response, dict):
        found = [response.get("ResponseMetadata", {}).get("HTTPStatusCode")]
    else:
        names = ("status", "status_code", *(["code"] if not hasattr(error, "status") else []))
        named = [getattr(error, name, None) for name in names]
        found = [*named, getattr(response, "status_code", None), getattr(response, "status", None)]
    statuses = (status for status in found if isinstance(status, int) and not isinstance(status, bool))
    return next((status for status in statuses if 400 <= status <= 599), None)


def _seconds(headers: Any) -> float | None:
    """What Retry-After says: a number of seconds, or a date."""
    import time

    try:
        text = headers.get("Retry-After") or headers.get("retry-after")
    except (AttributeError, TypeError):
        return None
    if not text:
        return None
    try:
        return max(0.0, float(text))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(str(text)).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None
