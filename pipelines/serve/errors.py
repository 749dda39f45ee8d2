"""How the server says no: a status, and a sentence that says what to do."""

from __future__ import annotations

from labelmill.operators.secrets import hide


class ApiError(Exception):
    """A request cannot be answered.

    Args:
        status: The HTTP status.
        message: What is wrong and what to do next.
        retry_after: Seconds after which to come back, for 429 and 503.
    """

    def __init__(self, status: int, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.retry_after = retry_after

    def body(self) -> dict[str, object]:
        """What the client is sent; `message` is where Inference's client looks, `error` where OpenAI's does."""
        text = hide(self.message)
        return {"message": text, "error": {"message": text, "type": _KINDS.get(self.status, "server_error")}}

    def headers(self) -> dict[str, str]:
        """Headers beside it."""
        return {} if self.retry_after is None else {"Retry-After": str(max(1, round(self.retry_after)))}


_KINDS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
} | dict.fromkeys((400, 405, 408, 410, 411, 413, 415, 422), "invalid_request_error")


def busy(what: str) -> ApiError:
    """There is more to do than may wait."""
    return ApiError(503, f"the server is busy: {what}; ask again after the seconds of Retry-After", 1)
