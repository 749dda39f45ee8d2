"""What is said of workers that die again and again, whoever runs them."""

from __future__ import annotations

from labelmill.pipelines.errors import UserError

RETRIES = 4
"""How often a shard, a dataset step or a part of one is given to another worker after one died on it."""


def died_too_often() -> UserError:
    """The error that ends the run then."""
    return UserError(
        f"workers died {RETRIES + 1} times on the same work: out of memory, or a library crashed. What was finished is "
        "kept. Try fewer --workers or a smaller `batch`; --inline shows the crash"
    )
