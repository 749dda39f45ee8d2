"""What a server is told when it starts."""

from __future__ import annotations

from dataclasses import dataclass, field

from labelmill.operators.images.decoded import MAX_PIXELS

MEGABYTE = 2**20


@dataclass(frozen=True, slots=True)
class Settings:
    """How a server serves.

    Attributes:
        cards: Names of cards, or paths, that are loaded at the start; of each task the first one is the default.
        pipeline: A pipeline file: its steps answer `/v1/run`, its ontology is the default of detection.
        ontology: A YAML file of classes for detection and classification, where a request names none.
        runs: Run directories that `/v1/search` may look into.
        keep: Models that are kept loaded, at most.
        memory_gb: What the loaded models may need together, by their cards; None for what this machine has.
        dtype: Arithmetic of all models.
        batch: Images per call of a model; None for what each operator does by itself.
        wait: Seconds that a batch waits for images which are on their way, at most.
        threads: Threads that decode and prepare images.
        queue: Images that may wait or be computed at once; beyond it requests are told to come back.
        queue_bytes: Bytes of bodies and pixels that may be held at once.
        max_body: Bytes of one request.
        max_pixels: Pixels of one image.
        max_images: Images, or texts, of one request.
        timeout: Seconds until a request is given up.
        body_timeout: Seconds in which a request's body must have come in.
        keys: API keys, one of which a request must show; none for no keys.
        allow_urls: Whether images may be URLs that the server fetches.
        cards_on_demand: Whether `/model/add` and requests may load cards that were not named at the start.
    """

    cards: tuple[str, ...] = ()
    pipeline: str | None = None
    ontology: str | None = None
    runs: tuple[str, ...] = ()
    keep: int = 8
    memory_gb: float | None = None
    dtype: str = "auto"
    batch: int | None = None
    wait: float = 0.005
    threads: int = 2
    queue: int = 256
    queue_bytes: int = 1024 * MEGABYTE
    max_body: int = 64 * MEGABYTE
    max_pixels: int = min(100_000_000, MAX_PIXELS)
    max_images: int = 128
    timeout: float = 60.0
    body_timeout: float = 30.0
    keys: tuple[str, ...] = field(default=(), repr=False)
    allow_urls: bool = False
    cards_on_demand: bool = True
