"""Vision-language models behind an OpenAI-compatible endpoint: vLLM, SGLang, TGI, llama.cpp, CogVLM's own server.

One chat completion (platform.openai.com/docs/api-reference/chat) per image: the image as a data URL, then the prompt.
Sampling is off (``temperature: 0``); how repeatable answers are beyond that is up to the server.
"""

from __future__ import annotations

import asyncio
import copy
import io
import os
from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from labelmill.operators.applying.patience import StopError
from labelmill.operators.engines.image_text_to_text.answerer import Reply, Requests
from labelmill.operators.engines.image_text_to_text.choice_answer import ChoiceAnswer, Token
from labelmill.operators.engines.image_text_to_text.json_answer import JsonAnswer
from labelmill.operators.engines.image_text_to_text.openai_client import open_client, wait
from labelmill.operators.images.data_url import data_url
from labelmill.operators.models.card import Dtype, ModelCard, ModelError
from labelmill.operators.moment import MomentError

if TYPE_CHECKING:
    from openai import AsyncOpenAI

    from labelmill.operators.images.decoded import DecodedImage

STOP_STATUS = {401, 402, 403, 404, 405}
STOP_CODES = {"insufficient_quota", "billing_hard_limit_reached", "invalid_api_key", "model_not_found"}
"""What an endpoint answers when no image would fare better: a key that is refused or spent, a model that is gone."""

PROBE_TOKENS = 8
"""Length of the one answer that `Endpoint.reach` asks for."""


class Config(BaseModel):
    """The `config` section of a card: what the server can do.

    Attributes:
        top_logprobs: How many tokens it tells the probabilities of; 0 if it tells none, and choices have none either.
        structured: Whether it knows ``response_format`` with a JSON schema. If not, the model is only told of it.
        body: Further fields of every request, such as ``chat_template_kwargs: {enable_thinking: false}``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    top_logprobs: int = Field(20, ge=0, le=20)
    structured: bool = True
    body: dict[str, Any] = {}


class Preprocess(BaseModel):
    """The `preprocess` section of a card.

    Attributes:
        formats: Files that the server reads; JPEG or else the first one is what others become.
        max_side: Images whose longer side has more pixels are made smaller before they are sent.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    formats: tuple[Literal["JPEG", "PNG", "WEBP"], ...] = Field(("JPEG", "PNG"), min_length=1)
    max_side: int = Field(2048, ge=16, le=16384)


def check(card: ModelCard, prompt: str, choices: Sequence[str] | None, schema: Mapping[str, Any] | None) -> None:
    """See `answerer.check`. Nothing is sent."""
    card.section("config", Config)
    card.section("preprocess", Preprocess)
    if card.dtype != "auto":
        raise ModelError(f"model card {card.name}: dtype must be auto for an endpoint but is {card.dtype}")


def make(card: ModelCard, dtype: Dtype, requests: Requests) -> Endpoint:
    """See `answerer.answerer`.

    Raises:
        ModelError: The key's environment variable is not set, or an arithmetic was asked for.
    """
    if dtype != "auto":
        raise ModelError(f"dtype must be auto with an endpoint, whose server decides, but is {dtype}", ("dtype",))
    return Endpoint(card, requests)


class Endpoint:
    """An `Answerer`.

    A choice's probability is read off the log-probabilities that the server sends (`ChoiceAnswer.probability`). An
    answer that is no choice, or does not fit the schema, is sent back once with what is wrong about it.

    Args:
        card: A card that `check` accepts.
        requests: How to ask.

    Raises:
        ModelError: The key's environment variable is not set.
    """

    def __init__(self, card: ModelCard, requests: Requests) -> None:
        self._card, self._requests = card, requests
        self._config = card.section("config", Config)
        self._preprocess = card.section("preprocess", Preprocess)
        self._key = _key(card)
        self._fields: dict[str, Any] = {}
        self._text = ""
        self._form: ChoiceAnswer | JsonAnswer | None = None

    def another(self) -> Endpoint:
        """See `Answerer`."""
        return copy.copy(self)

    def ask(
        self,
        prompt: str,
        choices: Sequence[str] | None,
        max_tokens: int,
        schema: Mapping[str, Any] | None = None,
    ) -> None:
        """See `Answerer`."""
        self._form = ChoiceAnswer(choices) if choices else JsonAnswer(schema) if schema is not None else None
        self._text = prompt if self._form is None else f"{prompt}\n{self._form.instruction}"
        self._fields = {"model": self._card.architecture, "temperature": 0, "max_tokens": max_tokens}
        if self._config.body:
            self._fields["extra_body"] = self._config.body
        if choices and self._config.top_logprobs:
            self._fields |= {"logprobs": True, "top_logprobs": self._config.top_logprobs}
        if schema is not None and self._config.structured:
            form = {"name": "answer", "schema": dict(schema)}
            self._fields["response_format"] = {"type": "json_schema", "json_schema": form}

    def prepare(self, image: DecodedImage) -> str:
        """See `Answerer`. A data URL."""
        return data_url(image, self._preprocess.formats, self._preprocess.max_side)

    def bucket(self, item: str) -> Hashable:
        """See `Answerer`. Every image is a request of its own."""
        return None

    def answer(self, items: Sequence[str]) -> list[Reply]:
        """See `Answerer`. A request that fails for good is a reply with a problem.

        Raises:
            StopError: No image would be answered: the key is refused or spent, or the model is gone.
        """
        return wait(self._answer(items))

    def reach(self) -> None:
        """Ask about a grey square, to find out before any image is read whether the endpoint can be used.

        Raises:
            ModelError: It cannot be reached, refuses the key, does not know the model, or does not understand the
                request.
        """
        wait(self._reach())

    async def _answer(self, items: Sequence[str]) -> list[Reply]:
        turn = asyncio.Semaphore(self._requests.concurrency)
        async with self._client() as client:

            async def one(item: str) -> Reply:
                async with turn:
                    return await self._converse(client, item)

            return list(await asyncio.gather(*map(one, items)))

    async def _converse(self, client: AsyncOpenAI, image: str) -> Reply:
        import openai

        messages = [self._message(image)]
        problem = ""
        for _ in range(2):
            try:
                choice = await self._complete(client, messages)
            except (openai.OpenAIError, ValueError, MomentError) as error:
                if getattr(error, "status_code", None) in STOP_STATUS or getattr(error, "code", None) in STOP_CODES:
                    raise StopError(self._reason(error)) from error
                return Reply("", problem=self._reason(error), cause=error)
            text = choice.message.content.encode("utf-8", "replace").decode()
            if self._form is None:
                return Reply(text.strip())
            try:
                answer = self._form.read(text)
            except ValueError as error:
                problem = str(error)
                if getattr(choice, "finish_reason", None) == "length":
                    return Reply("", problem=f"{problem}; it was cut off after max_tokens")
                messages += [{"role": "assistant", "content": text}]
                messages += [{"role": "user", "content": f"{problem}. {self._form.instruction}"}]
                continue
            if isinstance(self._form, ChoiceAnswer):
                return Reply(answer, self._form.probability(answer, _tokens(choice)))
            return Reply(answer)
        return Reply("", problem=problem)

    async def _complete(self, client: AsyncOpenAI, messages: list[dict[str, Any]]) -> Any:
        """The first choice of a chat completion.

        Raises:
            openai.OpenAIError: The request failed for good.
            MomentError: What came back is no chat completion: something on the way answered.
            ValueError: The completion has no answer in it.
        """
        given: Any = messages
        try:
            completion: Any = await client.chat.completions.create(messages=given, **self._fields)
        except ValueError as error:  # the library lets through what json raises
            raise MomentError(f"sent what cannot be read: {error}") from error
        choices: Any = getattr(completion, "choices", None)
        message = getattr(choices[0], "message", None) if isinstance(choices, list) and choices else None
        if message is None:
            raise MomentError(f"sent no chat completion: {str(completion)[:200]}")
        if not isinstance(getattr(message, "content", None), str):
            why = getattr(message, "refusal", None) or f"finish_reason is {getattr(choices[0], 'finish_reason', None)}"
            raise ValueError(f"sent a message without an answer: {why}")
        return choices[0]

    async def _reach(self) -> None:
        import openai

        async with self._client() as client:
            try:
                image = _grey_square(self._preprocess.formats)
                given: Any = [self._message(image)]
                await client.chat.completions.create(messages=given, **{**self._fields, "max_tokens": PROBE_TOKENS})
            except openai.NotFoundError as error:
                raise ModelError(f"{self._reason(error)}; {await self._known(client)}") from error
            except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
                hint = "if the server lacks something, say so in the card: config.top_logprobs, config.structured"
                raise ModelError(f"{self._reason(error)}; {hint}") from error
            except (openai.OpenAIError, ValueError, MomentError) as error:
                raise ModelError(self._reason(error)) from error

    async def _known(self, client: AsyncOpenAI) -> str:
        """Which models the server has, if it says so."""
        import openai

        try:
            listed = await client.models.list()
            names = sorted(str(model.id) for model in listed.data)
        except (openai.OpenAIError, ValueError, AttributeError, TypeError):
            return "check the address, which usually ends in /v1, and architecture, the model's name there"
        return f"architecture must be one of {', '.join(names[:10])} but is {self._card.architecture}"

    def _client(self) -> AsyncOpenAI:
        limits = self._requests
        return open_client(str(self._card.weights.endpoint), self._key, limits.timeout, limits.retries)

    def _message(self, image: str) -> dict[str, Any]:
        content = [{"type": "image_url", "image_url": {"url": image}}, {"type": "text", "text": self._text}]
        return {"role": "user", "content": content}

    def _reason(self, error: Exception) -> str:
        """What went wrong, in a sentence without the key."""
        import openai

        where, limit = f"endpoint {self._card.weights.endpoint}", self._requests
        if isinstance(error, openai.APITimeoutError):
            text = f"{where} gave no answer within {limit.timeout:g} s, asked {limit.retries + 1} times"
        elif isinstance(error, openai.APIConnectionError):
            text = f"{where} cannot be reached: {error.__cause__ or error}"
        elif isinstance(error, openai.AuthenticationError | openai.PermissionDeniedError):
            name = self._card.weights.api_key_env
            key = f"the key in {name}" if name else "requests without a key (the card has no weights.api_key_env)"
            text = f"{where} refuses {key}: {error.message}"
        elif isinstance(error, openai.APIStatusError):
            text = f"{where} answered {error.status_code}: {error.message}"
        else:
            text = f"{where} {error}"
        return text.replace(self._key, "…")[:400] if self._key else text[:400]


def _key(card: ModelCard) -> str:
    name = card.weights.api_key_env
    if name is None:
        return ""
    key = os.environ.get(name, "").strip()
    if not key:
        raise ModelError(
            f"environment variable {name} must hold the key of endpoint {card.weights.endpoint} but is not set"
        )
    return key


def _tokens(choice: Any) -> list[Token]:
    """The tokens of an answer; none where the server tells no probabilities."""
    content = getattr(getattr(choice, "logprobs", None), "content", None)
    found: list[Token] = []
    for each in content if isinstance(content, list) else []:
        others = getattr(each, "top_logprobs", None) or []
        listed = any(other.token == each.token for other in others)
        top = [(other.token, other.logprob) for other in (others if listed else [each, *others])]
        if not all(isinstance(text, str) and isinstance(value, int | float) for text, value in top):
            return []
        found.append((each.token, top))
    return found


def _grey_square(formats: Sequence[str]) -> str:
    from PIL import Image

    from labelmill.operators.images.decoded import decode

    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), (128, 128, 128)).save(buffer, "PNG")
    return data_url(decode(buffer.getvalue()), formats)
