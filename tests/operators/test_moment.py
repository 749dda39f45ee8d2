from __future__ import annotations

import asyncio
import errno
import http.client
import pickle
import socket
import ssl
import time
import urllib.error
from email.utils import formatdate
from typing import Any

import aiohttp
import botocore.exceptions
import fsspec.exceptions
import httpx
import httpx2
import numpy as np
import openai
import pyarrow as pa
import pytest
import requests
import s3fs.errors
from gcsfs.retry import HttpError
from yarl import URL

from labelmill.operators.applying.bisect import failed
from labelmill.operators.errors import RowError
from labelmill.operators.images.decoded import DecodeError
from labelmill.operators.moment import MomentError, accelerator_is_lost, kind_of, retry_after
from labelmill.pipelines.sources.storage import Missing, Unavailable


def aiohttp_status(status: int, headers: Any = None) -> aiohttp.ClientResponseError:
    url = URL("https://a/b.jpg")
    info = aiohttp.RequestInfo(url, "GET", headers or {}, url)  # type: ignore[arg-type]
    return aiohttp.ClientResponseError(info, (), status=status, headers=headers)


def boto(code: str, status: int) -> botocore.exceptions.ClientError:
    return botocore.exceptions.ClientError(
        {"Error": {"Code": code, "Message": "no"}, "ResponseMetadata": {"HTTPStatusCode": status}},  # type: ignore
        "GetObject",
    )


def openai_status(status: int, headers: Any = None) -> openai.APIStatusError:
    response = httpx2.Response(status, headers=headers, request=httpx2.Request("POST", "http://a"))
    return openai.APIStatusError("no", response=response, body=None)


def requests_status(status: int) -> requests.HTTPError:
    response = requests.Response()
    response.status_code = status
    return requests.HTTPError("no", response=response)


def from_cause(error: Exception, cause: BaseException) -> Exception:
    error.__cause__ = cause
    return error


def in_context(error: Exception, context: BaseException) -> Exception:
    error.__context__ = context
    return error


def of_numpy() -> Exception:
    try:
        np.zeros((1 << 62,), np.uint8)
    except MemoryError as error:
        return error
    raise AssertionError


def of_torch(text: str) -> Exception:
    import torch

    return torch.OutOfMemoryError(text)


MOMENT = [
    *[(aiohttp_status(status), "network") for status in (408, 425, 429, 500, 502, 503, 504, 507)],
    (aiohttp.ServerDisconnectedError(), "network"),
    (aiohttp.ServerTimeoutError(), "network"),
    (aiohttp.ClientPayloadError("Response payload is not completed"), "network"),
    (aiohttp.ClientOSError(errno.ECONNRESET, "reset"), "network"),
    (requests.ConnectionError("no"), "network"),
    (requests.ReadTimeout("no"), "network"),
    (requests.exceptions.ChunkedEncodingError("cut"), "network"),
    (requests_status(503), "network"),
    (httpx.ConnectError("no"), "network"),
    (httpx.ReadTimeout("no"), "network"),
    (httpx2.RemoteProtocolError("cut"), "network"),
    (httpx.HTTPStatusError("no", request=httpx.Request("GET", "http://a"), response=httpx.Response(502)), "network"),
    (openai.APIConnectionError(request=httpx2.Request("POST", "http://a")), "network"),
    (openai.APITimeoutError(request=httpx2.Request("POST", "http://a")), "network"),
    (openai_status(429), "network"),
    (openai_status(503), "network"),
    (boto("SlowDown", 503), "network"),
    (boto("RequestTimeout", 400), "network"),
    (boto("ExpiredToken", 400), "network"),
    (s3fs.errors.translate_boto_error(boto("SlowDown", 503)), "network"),
    (s3fs.errors.translate_boto_error(boto("InternalError", 500)), "network"),
    (s3fs.errors.translate_boto_error(boto("ExpiredToken", 403)), "network"),
    (s3fs.errors.translate_boto_error(boto("SlowDown", 503), set_cause=False), "network"),
    (botocore.exceptions.EndpointConnectionError(endpoint_url="http://a"), "network"),
    (botocore.exceptions.ReadTimeoutError(endpoint_url="http://a"), "network"),
    (botocore.exceptions.NoCredentialsError(), "network"),
    (HttpError({"code": 503, "message": "busy"}), "network"),
    (fsspec.exceptions.FSTimeoutError(), "network"),
    (urllib.error.HTTPError("http://a", 503, "busy", None, None), "network"),  # type: ignore[arg-type]
    (from_cause(urllib.error.URLError("no"), ConnectionRefusedError(errno.ECONNREFUSED, "no")), "network"),
    (http.client.IncompleteRead(b""), "network"),
    (socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution"), "network"),
    (ssl.SSLEOFError(8, "EOF occurred"), "network"),
    (TimeoutError(), "network"),
    (asyncio.TimeoutError(), "network"),  # noqa: UP041
    (ConnectionResetError(errno.ECONNRESET, "reset"), "network"),
    (OSError(errno.EHOSTUNREACH, "no route"), "network"),
    (MemoryError(), "memory"),
    (of_numpy(), "memory"),
    (pa.ArrowMemoryError("malloc of size 1 failed"), "memory"),
    (OSError(errno.ENOMEM, "no memory"), "memory"),
    (RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB."), "memory"),
    (RuntimeError("CUDA error: out of memory"), "memory"),
    (of_torch("HIP out of memory"), "memory"),
    (RuntimeError("[enforce fail at alloc_cpu.cpp:83] DefaultCPUAllocator: can't allocate memory"), "memory"),
    (RuntimeError("can't start new thread"), "machine"),
    *[
        (OSError(getattr(errno, name), name), "machine")
        for name in ("EMFILE", "ENFILE", "ENOSPC", "EDQUOT", "EIO", "ESTALE")
    ],
    (RuntimeError("CUDA error: an illegal memory access was encountered"), "accelerator"),
    (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), "accelerator"),
    # wrapped
    (from_cause(Unavailable("could not be read in 4 attempts"), aiohttp_status(503)), "network"),
    (from_cause(RowError("no"), from_cause(Unavailable("no"), OSError(errno.EMFILE, "too many"))), "machine"),
    (from_cause(DecodeError("the image is damaged"), MemoryError()), "memory"),
    (in_context(ValueError("while handling"), ConnectionResetError()), "network"),
    (ExceptionGroup("two", [ValueError("a"), TimeoutError()]), "network"),
    (MomentError("busy", "machine"), "machine"),
]

OF_THE_IMAGE = [
    *[aiohttp_status(status) for status in (400, 401, 403, 404, 410, 416, 422)],
    aiohttp.InvalidURL("http://"),
    requests_status(404),
    requests.exceptions.InvalidURL("no"),
    httpx.UnsupportedProtocol("no"),
    openai_status(400),
    boto("NoSuchKey", 404),
    boto("AccessDenied", 403),
    s3fs.errors.translate_boto_error(boto("NoSuchKey", 404)),
    s3fs.errors.translate_boto_error(boto("AccessDenied", 403)),
    HttpError({"code": 404, "message": "no"}),
    FileNotFoundError(errno.ENOENT, "gone"),
    PermissionError(errno.EACCES, "no"),
    IsADirectoryError(errno.EISDIR, "a folder"),
    OSError("image file is truncated (3 bytes not processed)"),
    OSError(errno.EINVAL, "no"),
    ValueError("out of memory"),
    RuntimeError("shape mismatch"),
    RowError("too thin to detect on"),
    DecodeError("the file is empty"),
    Missing("the file is gone"),
    from_cause(Missing("the file is gone"), aiohttp_status(404)),
    from_cause(FileNotFoundError("http://a"), aiohttp_status(404)),
    in_context(RowError("the model gave numbers that are not finite"), MemoryError()),
    from_cause(PermissionError("no"), boto("AccessDenied", 403)),
    ExceptionGroup("one", [KeyError("a")]),
]


@pytest.mark.parametrize(("error", "kind"), MOMENT, ids=lambda value: str(value)[:50] if value else "")
def test_of_the_moment(error: Exception, kind: str) -> None:
    assert kind_of(error) == kind
    assert failed(error).decision == "undone"
    assert accelerator_is_lost(error) == (kind == "accelerator")


@pytest.mark.parametrize("error", OF_THE_IMAGE, ids=lambda value: str(value)[:50])
def test_of_the_image(error: Exception) -> None:
    assert kind_of(error) is None
    assert failed(error).decision == "failed"


def test_a_chain_that_bites_its_tail_ends() -> None:
    first, second = ValueError("a"), ValueError("b")
    first.__cause__, second.__cause__ = second, first
    assert kind_of(first) is None


def test_when_a_server_asks_to_be_asked_again() -> None:
    assert retry_after(aiohttp_status(429, {"Retry-After": "7"})) == 7
    assert retry_after(openai_status(503, {"retry-after": "1.5"})) == 1.5
    assert retry_after(from_cause(RowError("no"), openai_status(503, {"retry-after": "2"}))) == 2
    found = retry_after(aiohttp_status(503, {"Retry-After": formatdate(time.time() + 30, usegmt=True)}))
    assert found is not None and 25 < found <= 30
    assert retry_after(aiohttp_status(503, {"Retry-After": formatdate(time.time() - 30, usegmt=True)})) == 0
    for text in ("soon", "", "-"):
        assert retry_after(aiohttp_status(503, {"Retry-After": text})) is None
    assert retry_after(aiohttp_status(503)) is None
    assert retry_after(MomentError("busy", retry_after=3)) == 3


def test_a_moment_error_travels_between_processes() -> None:
    again = pickle.loads(pickle.dumps(MomentError("busy", "machine", 3)))
    assert (str(again), again.kind, again.retry_after) == ("busy", "machine", 3)
