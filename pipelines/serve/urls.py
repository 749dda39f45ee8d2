"""Images that a request names by URL: fetched from public addresses only, in bounded time and size."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Callable
from typing import Any
from urllib.parse import urljoin, urlsplit

from labelmill.pipelines.serve.errors import ApiError

REDIRECTS = 5
SECONDS = 15.0

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def is_public(address: Address) -> bool:
    """Whether an address is one of the open internet: not this machine, not its network, not a cloud's metadata."""
    inner = getattr(address, "ipv4_mapped", None) or getattr(address, "sixtofour", None)
    if inner is not None:
        return is_public(inner)
    if address.version == 6 and address in _NAT64:
        return is_public(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
    return address.is_global and not (address.is_multicast or address.is_reserved or address.is_unspecified)


_NAT64 = ipaddress.ip_network("64:ff9b::/96")


async def fetch_image(url: str, max_bytes: int, allowed: Callable[[Address], bool] = is_public) -> bytes:
    """The file behind a URL.

    The name is resolved once, every address it has must be allowed, and the connection goes to one of those; the same
    again for every redirect. Proxies of the environment are not used.

    Args:
        url: http or https.
        max_bytes: More is refused.
        allowed: Which addresses may be asked.

    Raises:
        ApiError: 400, it may not or cannot be fetched.
    """
    import aiohttp

    try:
        async with asyncio.timeout(SECONDS):
            for _ in range(REDIRECTS + 1):
                resolver = await _resolved(url, allowed)
                connector = aiohttp.TCPConnector(resolver=resolver, use_dns_cache=False)
                async with (
                    aiohttp.ClientSession(connector=connector, trust_env=False) as session,
                    session.get(url, allow_redirects=False) as response,
                ):
                    where = response.headers.get("Location")
                    if response.status in (301, 302, 303, 307, 308) and where:
                        url = urljoin(url, where)
                        continue
                    if response.status != 200:
                        raise ApiError(400, f"the image's URL must answer with 200 but answers with {response.status}")
                    parts, size = [], 0
                    async for part in response.content.iter_chunked(1 << 16):
                        size += len(part)
                        if size > max_bytes:
                            raise ApiError(400, f"the image behind a URL must have at most {max_bytes:,} bytes")
                        parts.append(part)
                    return b"".join(parts)
    except TimeoutError as error:
        raise ApiError(400, f"the image's URL must answer within {SECONDS:g} seconds") from error
    except (aiohttp.ClientError, ValueError, OSError) as error:
        raise ApiError(400, f"the image's URL cannot be fetched: {type(error).__name__}") from error
    raise ApiError(400, f"the image's URL must not redirect more than {REDIRECTS} times")


async def _resolved(url: str, allowed: Callable[[Address], bool]) -> Any:
    """A resolver that knows the checked addresses of the URL's host, and nothing else."""
    from aiohttp.abc import AbstractResolver, ResolveResult

    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError as error:
        raise ApiError(400, "the image's URL is no URL") from error
    if parts.scheme not in ("http", "https") or not host or parts.username is not None:
        raise ApiError(400, "an image's URL must be http or https, with a host and without a user")
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise ApiError(400, "the host of the image's URL is not known") from error
    addresses = [(info[0], str(info[4][0])) for info in found]
    for _, address in addresses:
        if not allowed(ipaddress.ip_address(address.partition("%")[0])):
            raise ApiError(400, "an image's URL must lead to a public address: this one does not")

    class Checked(AbstractResolver):
        async def resolve(
            self, name: str, at: int = 0, family: socket.AddressFamily = socket.AF_INET
        ) -> list[ResolveResult]:
            return [
                ResolveResult(hostname=name, host=address, port=at, family=kind, proto=0, flags=socket.AI_NUMERICHOST)
                for kind, address in addresses
            ]

        async def close(self) -> None:
            return None

    return Checked()
