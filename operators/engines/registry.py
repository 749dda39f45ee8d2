"""Finds what builds a model card. The card's `task` and `engine` are the path of the file here that does it.

``task: detection, engine: transformers`` is ``detection/transformers.py``. Where one library does more than one thing,
its file may choose by the card's architecture (`engine_of`). A card's engine may also be a user's own: ``module:name``
or an entry point in the group ``labelmill.engines``, a class or module that has what its task asks of an engine:

==================  ================================================================
task                what an engine has
==================  ================================================================
detection           `detection.detector.Detector`: a class
embedding           `check`, `check_text`, `dimensions`, `image_encoder`, `text_encoder`, as `embedding/open_clip.py`
segmentation        `check`, `masks_of_point`, `make(card, dtype)`, which gives a `segmentation.segmenter.Segmenter`
gaze                `check`, `make(card, dtype)`, as `gaze/l2cs.py`
image-text-to-text  `check`, `make(card, dtype, requests)`, which gives an `image_text_to_text.answerer.Answerer`
moderation          `check`, `ready`, `make(card)`, which gives a `moderation.moderator.Moderator`
ocr, text-…         `check_cards`, `make(model, recognition, dtype)`, which gives a `text.reader.Reader`
==================  ================================================================
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from labelmill.operators.models.card import ModelCard, ModelError
from labelmill.operators.models.engines import BUILT_IN, own

ROOMS = {"ocr": "text", "text-detection": "text", "text-recognition": "text"}
"""Tasks whose engines share a room; any other task's room is called as it is."""


def path_of(task: str, engine: str) -> str:
    """The module of a built-in engine."""
    return f"labelmill.operators.engines.{ROOMS.get(task, task.replace('-', '_'))}.{engine}"


def require(*tasks: str) -> Callable[[ModelCard], ModelCard]:
    """A pydantic validator that accepts only cards for one of some tasks, with an engine that can build them."""

    def check(card: ModelCard) -> ModelCard:
        if card.task in tasks and (card.engine in BUILT_IN.get(card.task, ()) or own(card.engine)):
            return card
        wanted = " or ".join(f"for {task} with engine {' or '.join(BUILT_IN[task])}" for task in tasks)
        raise ValueError(f"must be a model card {wanted} but {card.name} is for {card.task} with engine {card.engine}")

    return check


def engine(card: ModelCard) -> Any:
    """What builds a card: a module or class with what the card's task asks of an engine. Loads no model.

    Raises:
        ModelError: There is no such engine, it cannot be imported, or it does not know the architecture.
    """
    target = own(card.engine)
    if target is not None:
        return _load(card, target)
    known = BUILT_IN.get(card.task, ())
    if card.engine not in known:
        raise ModelError(
            f"model card {card.name}: engine must be {' or '.join(known) or 'module:name'} but is {card.engine}"
        )
    module = import_module(path_of(card.task, card.engine))
    choose = getattr(module, "engine_of", None)
    return module if choose is None else choose(card)


def by_architecture(card: ModelCard, classes: Sequence[Any]) -> Any:
    """Of some engines the one whose `architectures` have the card's.

    Raises:
        ModelError: None knows it.
    """
    for found in classes:
        if card.architecture in found.architectures:
            return found
    known = [name for each in classes for name in each.architectures]
    raise ModelError(
        f"model card {card.name}: architecture must be one of {', '.join(known)} but is {card.architecture}"
    )


def _load(card: ModelCard, target: str) -> Any:
    module, _, name = target.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    try:
        found: Any = import_module(module)
        for part in filter(None, name.split(".")):
            found = getattr(found, part)
    except ImportError as error:
        raise ModelError(f"model card {card.name}: engine {card.engine} cannot be imported: {error}") from error
    except AttributeError as error:
        raise ModelError(f"model card {card.name}: engine {card.engine}: module {module} has no {name!r}") from error
    return found
