"""A client for an OpenAI-compatible endpoint that answers in time and tells it nothing of the environment."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from openai import AsyncOpenAI

CONNECT_SECONDS = 10.0

Result = TypeVar("Result")


def open_client(endpoint: str, key: str, timeout: float, retries: int) -> AsyncOpenAI:
    """A client for one event loop. It retries with growing pauses, or those that the server asks for.

    Args:
        endpoint: URL, usually ending in /v1.
        key: Empty for a server that wants none.
        timeout: Seconds that one request may take.
        retries: How often it is sent again.
    """
    import httpx2
    from openai import AsyncOpenAI, DefaultAsyncHttpxClient

    class Limited(DefaultAsyncHttpxClient):  # type: ignore[misc,unused-ignore]
        """The library's own limit counts from byte to byte: an answer that trickles in would never end."""

        async def send(self, request: Any, **options: Any) -> Any:
            try:
                async with asyncio.timeout(timeout):
                    return await super().send(request, **options)
            except TimeoutError as error:
                raise httpx2.ReadTimeout(f"no answer within {timeout:g} s", request=request) from error

    client = AsyncOpenAI(
        base_url=endpoint,
        api_key=key or "none",  # without one the client would send OPENAI_API_KEY to any server
        max_retries=retries,
        http_client=Limited(timeout=httpx2.Timeout(timeout, connect=min(timeout, CONNECT_SECONDS))),
    )
    client.organization = client.project = None  # nor other settings of the environment
    return client


def wait(work: Coroutine[Any, Any, Result]) -> Result:
    """The result of a coroutine, in a thread of its own: this one may have a running event loop."""
    with ThreadPoolExecutor(1, thread_name_prefix="endpoint") as pool:
        return pool.submit(asyncio.run, work).result()
