"""Which models a server has: loaded when they are asked for, kept while there is room, unloaded when idle."""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from labelmill.operators.applying.memory import free_memory
from labelmill.operators.errors import OperatorError
from labelmill.operators.models.card import ModelCard
from labelmill.operators.models.weights import verify
from labelmill.pipelines.config.cards import card_files, find_card
from labelmill.pipelines.errors import UserError, nearest
from labelmill.pipelines.serve.batcher import Batcher
from labelmill.pipelines.serve.errors import ApiError, busy
from labelmill.pipelines.serve.metrics import Metrics
from labelmill.pipelines.serve.parts import load_part
from labelmill.pipelines.serve.settings import Settings
from labelmill.pipelines.serve.work import Work

log = logging.getLogger("labelmill.serve")

QUESTIONS = 64
"""Questions (classes, prompts) that a model remembers; of the others the least recently asked go."""

ALIASES = {
    "ViT-B-32": "clip-vit-b-32",
    "ViT-L-14": "clip-vit-l-14",
    "GroundingDINO_SwinT_OGC": "grounding-dino-tiny",
    "vit_b": "sam-vit-b",
    "vit_l": "sam-vit-l",
    "vit_h": "sam-vit-h",
    "hiera_small": "sam2.1-hiera-small",
    "L2CS": "l2cs-gaze360",
}
"""What Inference calls a model for which there is a card."""

UNSAID = {"default", "hiera_tiny", "hiera_large", "small-small"}
"""Versions that Inference's clients send without being told to: they mean this server's own model of the task."""


@dataclass
class Model:
    """One card, loaded.

    Attributes:
        card: What it was built from.
        batcher: Its thread.
        seconds: How long it took to load.
        part: What was loaded: an engine, or an operator.
    """

    card: ModelCard
    batcher: Batcher
    part: Any
    seconds: float
    users: int = 0
    _works: OrderedDict[Hashable, Work] = field(default_factory=OrderedDict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def known(self, key: Hashable) -> Work | None:
        """What answers one question, if it has been asked before."""
        with self._lock:
            if key in self._works:
                self._works.move_to_end(key)
            return self._works.get(key)

    def work(self, key: Hashable, make: Callable[[Any], Work]) -> Work:
        """What answers one question; made once, in the model's thread. Blocks while it is made.

        Args:
            key: Tells the question from others.
            make: From the loaded part to the work.
        """
        known = self.known(key)
        if known is not None:
            return known
        made: Work = self.batcher.call(lambda: make(self.part)).result()
        with self._lock:
            made = self._works.setdefault(key, made)
            while len(self._works) > QUESTIONS:
                self._works.popitem(last=False)
        return made


class Models:
    """The models of one server. Thread-safe.

    Args:
        settings: Which cards, how many, how much memory.
        metrics: Told of what is loaded.

    Raises:
        UserError: A card is not there, or its weights are not.
    """

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._settings, self._metrics = settings, metrics
        self._loaded: OrderedDict[str, Model] = OrderedDict()
        self._lock = threading.RLock()
        self._loading: dict[str, threading.Lock] = {}
        self.named: dict[str, ModelCard] = {}
        for name in settings.cards:
            card = find_card(name)
            try:
                verify(card)
            except OperatorError as error:
                raise UserError(str(error)) from error
            self.named[card.name] = card
        self.room_gb = settings.memory_gb if settings.memory_gb is not None else _memory_here()

    def start(self) -> None:
        """Load the named cards, as many as are kept.

        Raises:
            UserError: One cannot be built.
        """
        # A card that only reads words is loaded with the one that finds them.
        alone = [name for name, card in self.named.items() if card.task != "text-recognition"]
        for name in alone[: self._settings.keep]:
            try:
                self._load(name)
            except ApiError as error:
                raise UserError(error.message) from error

    def close(self) -> None:
        """Do what waits, and unload everything."""
        with self._lock:
            models = list(self._loaded.values())
            self._loaded.clear()
        for model in models:
            model.batcher.close()

    def lost(self) -> str | None:
        """Why this process can answer nothing any more, if so."""
        return next((model.batcher.lost for model in self.loaded() if model.batcher.lost), None)

    def loaded(self) -> list[Model]:
        """What is loaded, the most recently used last."""
        with self._lock:
            return list(self._loaded.values())

    def resolve(self, task: str, wanted: str | None = None) -> str:
        """The name of the card that answers.

        Args:
            task: What it must do, such as "embedding".
            wanted: A card's name, its architecture, or what Inference calls it; None, or a version that clients send
                unasked, for the server's own: the first of the cards named at the start, else the latest used.

        Raises:
            ApiError: 404, there is none, or it does something else.
        """
        if wanted is None or wanted in UNSAID:
            loaded = [model.card for model in reversed(self.loaded())]
            found = next((card for card in (*self.named.values(), *loaded) if card.task == task), None)
            if found is not None:
                return found.name
            raise ApiError(
                404,
                f"this server has no model for {task}: name a card of that task in the request, add one by POST "
                "/model/add, or start the server with one (`labelmill models` lists them)",
            )
        card = self.card(wanted)
        if card.task != task:
            raise ApiError(404, f"model must be a card for {task} but {card.name} is for {card.task}")
        return card.name

    def card(self, wanted: str) -> ModelCard:
        """The card of that name, architecture or alias.

        Raises:
            ApiError: 404, there is none that this server serves.
        """
        known = {**{model.card.name: model.card for model in self.loaded()}, **self.named}
        for name in (wanted, ALIASES.get(wanted, wanted)):
            if name in known:
                return known[name]
        same = [card for card in known.values() if card.architecture == wanted]
        if same:
            return same[0]
        # A request names a card, never a path: files are the server's.
        if self._settings.cards_on_demand:
            cards = card_files()
            for name in (wanted, ALIASES.get(wanted, wanted)):
                if name in cards:
                    try:
                        return find_card(name)
                    except UserError as error:
                        raise ApiError(404, str(error)) from error
            names: list[str] = sorted({*known, *cards})
        else:
            names = sorted(known)
        raise ApiError(404, f"there is no model {wanted!r}{nearest(wanted, names)}; GET /v1/models lists them")

    @contextmanager
    def use(self, name: str) -> Iterator[Model]:
        """A model, loaded, which stays loaded meanwhile. Blocks while it is loaded.

        Raises:
            ApiError: 404 or 507, it cannot be loaded; 503, there is no room for it at the moment.
        """
        model = self._take(name)
        try:
            yield model
        finally:
            with self._lock:
                model.users -= 1

    def is_loaded(self, name: str) -> bool:
        with self._lock:
            return name in self._loaded

    def unload(self, name: str) -> None:
        """Unload a model once it is idle; nothing if it is not loaded.

        Raises:
            ApiError: 409, it is in use.
        """
        with self._lock:
            model = self._loaded.get(name)
            if model is None:
                return
            if model.users or not model.batcher.idle:
                raise ApiError(409, f"the model {name} is in use; try again when its requests are answered")
            del self._loaded[name]
        self._dropped(model)

    def _take(self, name: str) -> Model:
        while True:
            with self._lock:
                model = self._loaded.get(name)
                if model is not None:
                    self._loaded.move_to_end(name)
                    model.users += 1
                    return model
            self._load(name)

    def _load(self, name: str) -> None:
        with self._lock:
            turn = self._loading.setdefault(name, threading.Lock())
        with turn:
            if self.is_loaded(name):
                return
            card = self.card(name)
            self._make_room(card)
            started = time.monotonic()
            try:
                verify(card)
                part = load_part(card, self._settings, self.named)
            except OperatorError as error:
                raise ApiError(404, f"the model {name} cannot be loaded: {error}") from error
            model = Model(card, Batcher(name, self._settings.wait, self._metrics), part, time.monotonic() - started)
            with self._lock:
                self._loaded[name] = model
                self._metrics.models.set(len(self._loaded))
            log.info("loaded %s in %.1f s", name, model.seconds)

    def _make_room(self, card: ModelCard) -> None:
        """Unload the least recently used that are idle until there is room for a card."""
        if card.memory_gb > self.room_gb:
            raise ApiError(
                507, f"the model {card.name} needs {card.memory_gb:g} GB but there are {self.room_gb:.1f} (--memory)"
            )
        dropped = []
        with self._lock:
            while self._loaded and (
                len(self._loaded) >= self._settings.keep
                or sum(model.card.memory_gb for model in self._loaded.values()) + card.memory_gb > self.room_gb
            ):
                idle = [name for name, each in self._loaded.items() if not each.users and each.batcher.idle]
                if not idle:
                    raise busy(f"there is no room for {card.name} while {', '.join(self._loaded)} are in use")
                dropped.append(self._loaded.pop(idle[0]))
        for model in dropped:
            self._dropped(model)

    def _dropped(self, model: Model) -> None:
        model.batcher.close()
        model.part = None
        model._works.clear()
        free_memory()
        self._metrics.models.set(len(self.loaded()))
        log.info("unloaded %s", model.card.name)


def _memory_here() -> float:
    """GB that models may have: of the first GPU where there is one, else what is free of this machine's."""
    import psutil
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_properties(0).total_memory / 1e9 * 0.9
    return psutil.virtual_memory().available / 1e9 * 0.9
