"""Weights as ONNX files, run by ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from labelmill.operators.models.card import ModelCard, ModelError


def session(card: ModelCard, path: Path) -> Any:
    """Open a file: on the CPU, in one thread, so that results do not depend on how many there are.

    Raises:
        ModelError: It is corrupt.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.enable_cpu_mem_arena = False  # where every image has a size of its own, an arena keeps room for them all
    options.log_severity_level = 4
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime has an exception for every stage of reading
        raise ModelError(f"weights of card {card.name} cannot be read from {path}: {error}") from error
