"""What must not be told: keys and passwords, in every message, reason and file of a run."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

HIDDEN = "•••"

LEAST = 6
"""Shorter values are not looked for: they stand in too many words that are no secret."""

PLAIN = frozenset({
    *("anon", "endpoint_url", "endpoint_override", "region", "region_name", "use_ssl", "verify", "requester_pays"),
    *("project", "consistency", "cache_timeout", "use_listings_cache", "default_block_size", "timeout", "version"),
    *("signature_version", "addressing_style", "max_pool_connections", "connect_timeout", "read_timeout", "retries"),
    *("max_attempts", "mode", "trust_env", "ssl", "default_cache_type"),
})  # fmt: skip
"""Storage options that are told as they are; any other could be a secret."""

_known: dict[str, str] = {}

_USERINFO = re.compile(r"(?<=://)[^/\s@'\"]+@")
_SIGNATURE = re.compile(
    r"(?<=[?&])(X-Amz-(?:Signature|Credential|Security-Token)|X-Goog-(?:Signature|Credential)|AWSAccessKeyId|Signature"
    r"|sig|token|access_token|api_key|apikey|key|password|secret)=[^&\s'\"#]+",
    re.IGNORECASE,
)


def keep_secret(value: object, stands_for: str = HIDDEN) -> None:
    """From now on `hide` puts `stands_for` in the place of a value. Short ones are not kept."""
    text = str(value)
    if len(text) >= LEAST:
        _known[text] = stands_for


def known() -> dict[str, str]:
    """What this process keeps, for one that works for it: value → what stands for it."""
    return dict(_known)


def keep_all(secrets: Mapping[str, str]) -> None:
    """Keep what another process keeps."""
    _known.update(secrets)


def hide(text: str) -> str:
    """A text without secrets: those that are kept, users and passwords in URLs, signatures of signed URLs."""
    for value in sorted(_known, key=len, reverse=True):
        text = text.replace(value, _known[value])
    if "://" in text:
        text = _SIGNATURE.sub(lambda found: f"{found[1]}={HIDDEN}", _USERINFO.sub(f"{HIDDEN}@", text))
    return text


def keep_options(options: Mapping[str, Any]) -> None:
    """Keep what storage options hold, but for `PLAIN` ones."""
    for name, value in options.items():
        if isinstance(value, Mapping):
            keep_options(value)
        elif name not in PLAIN and isinstance(value, str) and value not in _known:
            keep_secret(value)


def plain_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Storage options that may be written down: `PLAIN` ones, and references to the environment."""
    told: dict[str, Any] = {}
    for name, value in options.items():
        if isinstance(value, Mapping):
            if inner := plain_options(value):
                told[name] = inner
        elif name in PLAIN or (isinstance(value, str) and value.startswith("${oc.env:")):
            told[name] = value
    return told
