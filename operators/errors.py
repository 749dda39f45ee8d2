"""How an operator says no."""

from __future__ import annotations


class RowError(Exception):
    """One image cannot be processed; its row becomes `failed` with this message as the reason."""


class OperatorError(Exception):
    """An operator's parameters or input columns do not fit together; raised before anything runs.

    Args:
        message: What must be, and what is.
        param: Path of the offending parameter below the step, such as ``("score", "car")``.
    """

    def __init__(self, message: str, param: tuple[str | int, ...] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
