"""ask: what a vision-language model says about an image."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import pyarrow as pa
from pydantic import AfterValidator, Field, model_validator

from labelmill.operators.base import Needs, tuning
from labelmill.operators.engines.image_text_to_text import answerer
from labelmill.operators.engines.image_text_to_text.answerer import Reply, Requests
from labelmill.operators.engines.image_text_to_text.json_answer import JsonAnswer
from labelmill.operators.engines.registry import require
from labelmill.operators.errors import RowError
from labelmill.operators.models.card import ModelCard
from labelmill.operators.models.operator import ModelOperator, ModelParams

if TYPE_CHECKING:
    from labelmill.operators.images.decoded import DecodedImage

AnswerCard = Annotated[ModelCard, AfterValidator(require("image-text-to-text"))]

Choice = Annotated[str, Field(min_length=1, pattern=r"^\S(.*\S)?$")]

WAVES = 4
"""Images handed to an endpoint at a time, for each request in flight: the slowest of them holds the others up less."""


def _choices(answers: tuple[str, ...] | None) -> tuple[str, ...] | None:
    if answers is not None and (len(answers) < 2 or len(set(answers)) < len(answers)):
        raise ValueError(f"must be two or more different answers but are {', '.join(answers) or 'none'}")
    return answers


def _schema(schema: dict[str, Any] | None) -> dict[str, Any] | None:
    if schema is not None:
        JsonAnswer(schema)
    return schema


class Ask(ModelOperator):
    """Captions, and answers to questions, of a vision-language model (Liu et al. 2023, LLaVA, and its many relatives).

    Every image is shown with the same prompt. Without `answers` the model writes what it likes, always the likeliest
    next word; with them it chooses, and says how sure it is; with a `schema` it answers with JSON. The model runs here,
    or behind any OpenAI-compatible endpoint: an image that the endpoint refuses is failed, with the reason; where the
    endpoint cannot be reached or is busy, the image is left undone, and the run stops if it goes on like that.
    """

    name = "ask"

    class Params(ModelParams):
        """What to ask, and whom.

        Attributes:
            model: The model card. In the fingerprint its digest stands for it.
            prompt: A question or an instruction.
            answers: What to choose from, such as [yes, no]; the likeliest is the answer. Any text if not given. As the
                model would write them: many begin an answer with a capital.
            json_schema: A JSON schema (`schema` in a pipeline); images whose answers do not fit it are failed.
            max_tokens: A text is cut off after so many tokens; a word has one to three.
            batch: Images per call of the model.
            concurrency: Requests in flight to an endpoint, of each worker.
            timeout: Seconds until a request to an endpoint is given up.
            retries: How often a request to an endpoint is sent again, after pauses that grow from half a second to
                eight, or that the server asks for; with others of its batch it is then tried again for longer, as
                `labelmill run --patience` says.
        """

        model: AnswerCard = tuning(...)
        prompt: str = Field("Describe the image.", min_length=1)
        answers: Annotated[tuple[Choice, ...] | None, AfterValidator(_choices)] = None
        json_schema: Annotated[dict[str, Any] | None, AfterValidator(_schema)] = Field(None, alias="schema")
        max_tokens: int = Field(128, ge=1)
        batch: int = tuning(8, ge=1)
        concurrency: int = tuning(8, ge=1)
        timeout: float = Field(120, gt=0)
        retries: int = Field(4, ge=0)

        @model_validator(mode="after")
        def _one_form(self) -> Ask.Params:
            if self.answers is not None and self.json_schema is not None:
                raise ValueError("must have answers or a schema, not both")
            return self

    params: Params

    @property
    def batch(self) -> int:
        return self.params.concurrency * WAVES if self._remote else self.params.batch

    @property
    def _remote(self) -> bool:
        return self.params.model.weights.endpoint is not None

    def needs(self) -> Needs:
        # A request costs encoding and sending an image; a worker waits for many at a time.
        remote = self._remote
        return Needs(gpu=not remote, memory_gb=self.params.model.memory_gb, seconds=0.01 if remote else None)

    def writes(self) -> pa.Schema:
        """`answer`, with a schema JSON whose keys are sorted; and `probability`, 0…1, of the answer among `answers`,
        null where those are not given or the endpoint does not tell."""
        return pa.schema([pa.field("answer", pa.string()), pa.field("probability", pa.float32())])

    def check(self, columns: Mapping[str, pa.DataType]) -> None:
        super().check(columns)
        given = self.params
        answerer.check(given.model, given.prompt, given.answers, given.json_schema)

    def ready(self) -> None:
        super().ready()
        if self._remote:
            from labelmill.operators.engines.image_text_to_text.openai import Endpoint

            engine = self._asked()
            assert isinstance(engine, Endpoint)
            engine.reach()

    def load(self) -> None:
        self._engine = self._asked()

    def use(self, engine: answerer.Answerer) -> None:
        """Ask a model that is loaded already, in place of `load`.

        Args:
            engine: Of `params.model`. Several operators may use it, one at a time.

        Raises:
            OperatorError: It cannot be asked.
        """
        self._engine = self._put(engine.another())

    def _asked(self) -> answerer.Answerer:
        given = self.params
        engine = answerer.answerer(given.model, given.dtype, Requests(given.concurrency, given.timeout, given.retries))
        return self._put(engine)

    def _put(self, engine: answerer.Answerer) -> answerer.Answerer:
        given = self.params
        engine.ask(given.prompt, given.answers, given.max_tokens, given.json_schema)
        return engine

    def prepare(self, image: DecodedImage, row: Mapping[str, Any]) -> Any:
        return self._engine.prepare(image)

    def bucket(self, item: Any) -> Hashable:
        return self._engine.bucket(item)

    def infer(self, items: list[Any]) -> list[dict[str, Any] | RowError]:
        return [_row(reply) for reply in self._engine.answer(items)]


def _row(reply: Reply) -> dict[str, Any] | RowError:
    return reply.error() or {"answer": reply.answer, "probability": reply.probability}
