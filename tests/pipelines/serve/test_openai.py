"""OpenAI's own client works against the server."""

from __future__ import annotations

import base64
from collections.abc import Iterator

import numpy as np
import openai
import pytest

from tests.pipelines.serve.serving import listening
from tests.pipelines.serve.test_answers import embedded
from tests.pipelines.serve.test_labels import asked


@pytest.fixture(scope="module")
def chat() -> Iterator[openai.OpenAI]:
    with listening(cards=("clip-miniature", "vlm-miniature"), keys=("a-key",)) as address:
        yield openai.OpenAI(base_url=f"{address}/v1", api_key="a-key", max_retries=0, timeout=60)


def url(data: bytes) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"


def test_embeddings_of_texts_and_images(chat: openai.OpenAI, scenes: list[bytes]) -> None:
    texts = chat.embeddings.create(model="clip-miniature", input=["a red car", "a cup"])
    plain = chat.embeddings.create(model="clip-miniature", input=["a red car", "a cup"], encoding_format="float")
    assert [each.embedding for each in texts.data] == [pytest.approx(each.embedding, abs=1e-7) for each in plain.data]
    images = chat.embeddings.create(model="clip-miniature", input=[url(scenes[0]), "a cup", url(scenes[1])])
    found = np.array([each.embedding for each in images.data])
    np.testing.assert_allclose(found[[0, 2]], embedded(scenes[:2], 1), atol=2e-4)
    np.testing.assert_allclose(found[1], texts.data[1].embedding, atol=1e-6)
    assert [each.index for each in images.data] == [0, 1, 2]


def test_a_chat_about_an_image(chat: openai.OpenAI, scenes: list[bytes]) -> None:
    content = [
        {"type": "text", "text": "Is there a face?"},
        {"type": "image_url", "image_url": {"url": url(scenes[0])}},
    ]
    messages = [{"role": "user", "content": content}]
    answer = chat.chat.completions.create(model="vlm-miniature", messages=messages, max_tokens=128)  # type: ignore[call-overload]
    assert answer.choices[0].message.content == asked(scenes[:1], "Is there a face?")[0]
    stream = chat.chat.completions.create(model="vlm-miniature", messages=messages, stream=True)  # type: ignore[call-overload]
    assert "".join(event.choices[0].delta.content or "" for event in stream) == answer.choices[0].message.content


def test_what_the_client_is_told(chat: openai.OpenAI, scenes: list[bytes]) -> None:
    with pytest.raises(openai.NotFoundError, match="did you mean"):
        chat.embeddings.create(model="clip-miniatur", input="x")
    with pytest.raises(openai.BadRequestError, match="dimensions must be 128"):
        chat.embeddings.create(model="clip-miniature", input="x", dimensions=7)
    with pytest.raises(openai.BadRequestError, match="one image_url and a text"):
        chat.chat.completions.create(model="vlm-miniature", messages=[{"role": "user", "content": "hello"}])
    with pytest.raises(openai.AuthenticationError):
        chat.with_options(api_key="wrong").models.list()
    assert {each.id for each in chat.models.list()} == {"clip-miniature", "vlm-miniature"}
