"""What all routes share: the settings, the models, the threads, and how images come to a model and answers back."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable, Hashable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from labelmill.operators.errors import OperatorError
from labelmill.operators.ontology import Ontology
from labelmill.pipelines.serve.budget import Budget
from labelmill.pipelines.serve.errors import ApiError
from labelmill.pipelines.serve.images import ImageIn, RequestImage, file_bytes
from labelmill.pipelines.serve.metrics import Metrics
from labelmill.pipelines.serve.models import Model, Models
from labelmill.pipelines.serve.settings import Settings
from labelmill.pipelines.serve.urls import fetch_image
from labelmill.pipelines.serve.work import Work

if TYPE_CHECKING:
    from labelmill.pipelines.serve.chain import Chain


class Server:
    """One process that serves.

    Args:
        settings: How.
        ontology: The classes where a request names none.

    Raises:
        UserError: A card is not there, or its weights are not.
    """

    def __init__(self, settings: Settings, ontology: Ontology | None = None) -> None:
        self.settings, self.ontology = settings, ontology
        self.uuid = str(uuid.uuid4())
        self.metrics = Metrics()
        self.models = Models(settings, self.metrics)
        self.images = Budget(settings.queue, "images that may wait")
        self.bytes = Budget(settings.queue_bytes, "bytes of requests and pixels")
        self.metrics.images.set_function(lambda: self.images.used)
        self.metrics.bytes.set_function(lambda: self.bytes.used)
        # What prepares images is apart from what loads models and runs tables, so that neither waits for the other.
        self.prepare = ThreadPoolExecutor(settings.threads, thread_name_prefix="prepare")
        self.loading = ThreadPoolExecutor(8, thread_name_prefix="load")
        self.fetch: Callable[[str, int], Any] = fetch_image
        self.pipeline: Chain | None = None
        self.ready = False

    def close(self) -> None:
        """After the last request: end threads, unload models."""
        self.prepare.shutdown()
        self.loading.shutdown()
        self.models.close()

    async def blocking(self, function: Callable[..., Any], *args: Any) -> Any:
        """What a function gives that may take long, such as loading a model."""
        return await asyncio.get_running_loop().run_in_executor(self.loading, function, *args)

    @asynccontextmanager
    async def using(self, name: str) -> AsyncIterator[Model]:
        """A model, loaded, which stays loaded meanwhile; see `Models.use`."""
        entered = self.models.use(name)
        model: Model = entered.__enter__() if self.models.is_loaded(name) else await self.blocking(entered.__enter__)
        try:
            yield model
        finally:
            entered.__exit__(None, None, None)

    @asynccontextmanager
    async def opened(
        self, given: ImageIn | Sequence[ImageIn], numbered: bool = True
    ) -> AsyncIterator[list[RequestImage]]:
        """The images of a request.

        Args:
            given: One, or several.
            numbered: Whether what is wrong with one of several says which.

        Raises:
            ApiError: 400, one is no image that may be sent; 503, too many wait already.
        """
        many = [given] if isinstance(given, ImageIn) else list(given)
        self.check_count(len(many), "images")
        with self.images.taken(len(many)):
            images = []
            try:
                for place, each in enumerate(many, 1):
                    data = await self._bytes(each)
                    told = f"image {place}: " if numbered and len(many) > 1 else ""
                    images.append(RequestImage(data, self.settings.max_pixels, self.bytes, told))
                yield images
            finally:
                for image in images:
                    image.close()

    def check_count(self, count: int, what: str) -> None:
        """Refuse a list that is empty or too long.

        Raises:
            ApiError: 422.
        """
        if not 1 <= count <= self.settings.max_images:
            raise ApiError(422, f"a request must have 1 to {self.settings.max_images} {what} but has {count}")

    async def _bytes(self, image: ImageIn) -> bytes:
        if image.type != "url":
            return file_bytes(image)
        if not self.settings.allow_urls:
            raise ApiError(400, "images by URL are off: send base64, or start the server with --allow-urls")
        if not isinstance(image.value, str):
            raise ApiError(400, "the value of an image must be its URL")
        found: bytes = await self.fetch(image.value, self.settings.max_body)
        return found

    async def work(self, model: Model, key: Hashable, make: Callable[[Any], Work]) -> Work:
        """What answers a question; see `Model.work`.

        Raises:
            ApiError: 400, the model cannot be asked this.
        """
        known = model.known(key)
        if known is not None:
            return known
        try:
            made: Work = await self.blocking(model.work, key, make)
        except OperatorError as error:
            raise ApiError(400, str(error)) from error
        return made

    async def see(
        self,
        model: Model,
        work: Any,
        images: Sequence[RequestImage],
        rows: Sequence[Mapping[str, Any]] | None = None,
    ) -> list[Any]:
        """What an operator says of images: decoded and prepared in threads, then batched with those of other requests.

        Args:
            model: Whose thread runs it.
            work: The operator, or what else prepares an image with its row in a thread (`SamWork`).
            images: Those of one request.
            rows: For each what the operator reads beside it.

        Returns:
            For each a `pyarrow.Table` of one row, the columns of the operator's `writes()`, as in a run.

        Raises:
            ApiError: The first image's that has one.
        """

        def come(image: RequestImage, row: Mapping[str, Any]) -> Future[Any]:
            try:
                return model.batcher.submit(work, work.prepare(image.get(), row))
            finally:
                model.batcher.coming(-1)

        loop = asyncio.get_running_loop()

        async def one(image: RequestImage, row: Mapping[str, Any]) -> Any:
            return await asyncio.wrap_future(await loop.run_in_executor(self.prepare, come, image, row))

        model.batcher.coming(len(images))
        given = rows if rows is not None else [{} for _ in images]
        return await _all([one(image, row) for image, row in zip(images, given, strict=True)])

    async def run(self, model: Model, work: Work, items: Sequence[Any]) -> list[Any]:
        """What a work gives for items that need no preparing, such as texts."""
        return await _all([asyncio.wrap_future(model.batcher.submit(work, item)) for item in items])

    async def decoded(self, images: Sequence[RequestImage]) -> None:
        """Have images decoded whose size is needed before, or without, a model."""
        loop = asyncio.get_running_loop()
        await _all([loop.run_in_executor(self.prepare, image.get) for image in images])


async def _all(waiting: Sequence[Any]) -> list[Any]:
    """All of them; when one fails the others are still waited for: what they hold is in use until they end."""
    if len(waiting) == 1:
        return [await waiting[0]]
    outcomes = await asyncio.gather(*waiting, return_exceptions=True)
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome
    return list(outcomes)
