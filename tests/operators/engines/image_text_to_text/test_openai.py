from __future__ import annotations

import asyncio
import base64
import io
import json
import math
import re
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from labelmill.operators.applying.apply import Job, apply
from labelmill.operators.applying.patience import StopError
from labelmill.operators.applying.shard_images import ShardImages
from labelmill.operators.applying.worker import Worker
from labelmill.operators.ask import Ask
from labelmill.operators.errors import OperatorError, RowError
from labelmill.operators.images.decoded import DecodedImage, decode
from labelmill.operators.models import ModelCard, ModelError, load_card
from labelmill.operators.models.card import ROOT
from labelmill.operators.moment import kind_of
from tests.operators.engines.image_text_to_text.chat_server import MODEL, ChatServer, Request, Response, says

SOON = {"retry-after-ms": "1"}
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer", "minimum": 0}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", "a-key-for-another-server")


def card(address: str, **changes: Any) -> ModelCard:
    weights = {"endpoint": address, **changes.pop("weights", {})}
    fields = {
        "name": "far",
        "task": "image-text-to-text",
        "engine": "openai",
        "architecture": MODEL,
        "licence": "Apache-2.0",
        "memory_gb": 0.5,
        **changes,
    }
    return ModelCard.model_validate({**fields, "weights": weights})


def ask(given: ModelCard, **params: Any) -> Ask:
    operator = Ask(Ask.Params(model=given, **{"timeout": 5, "retries": 2, **params}))
    operator.check({})
    return operator


def picture(number: int) -> DecodedImage:
    """A square of one colour, which its number is."""
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16), (number, 0, 255 - number)).save(buffer, "PNG")
    return decode(buffer.getvalue())


def number_of(request: Request) -> int:
    data = base64.b64decode(request.image.split(",", 1)[1])
    pixel = Image.open(io.BytesIO(data)).convert("RGB").getpixel((0, 0))
    assert isinstance(pixel, tuple)
    return int(pixel[0])


def rows(operator: Ask, count: int = 1) -> list[Any]:
    operator.load()
    return operator.infer([operator.prepare(picture(number), {}) for number in range(count)])


def problem(answer: Callable[[Request], Response], **params: Any) -> str:
    """The reason why the second of three images fails, of which the first and the last are answered."""

    def only_the_second(request: Request) -> Response:
        return answer(request) if number_of(request) == 1 else says("fine")

    with ChatServer(only_the_second) as server:
        first, second, third = rows(ask(card(server.address), **params), 3)
    assert first["answer"] == third["answer"] == "fine"
    assert isinstance(second, RowError)
    return str(second)


# ---------------------------------------------------------------- requests


def test_what_is_sent_and_what_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAR_KEY", "secret\n")
    monkeypatch.setenv("OPENAI_ORG_ID", "another-server's")
    with ChatServer(lambda request: says(" A red square. "), key="secret") as server:
        given = card(server.address, weights={"api_key_env": "FAR_KEY"}, config={"body": {"seed": 7}})
        assert rows(ask(given, prompt="What is it?", max_tokens=9)) == [
            {"answer": "A red square.", "probability": None}
        ]
    (request,) = server.requests
    message = {
        "role": "user",
        "content": [request.body["messages"][0]["content"][0], {"type": "text", "text": "What is it?"}],
    }
    fields = {"model": MODEL, "temperature": 0, "max_tokens": 9, "seed": 7, "messages": [message]}
    assert request.body == fields
    assert request.image == "data:image/png;base64," + base64.b64encode(picture(0).data).decode()
    assert "another-server's" not in json.dumps(dict(request.headers))


def test_without_a_key_none_of_the_environment_is_sent() -> None:
    with ChatServer(lambda request: says("a")) as server:
        rows(ask(card(server.address)))
    assert "a-key-for-another-server" not in json.dumps(dict(server.requests[0].headers))


def test_many_in_flight_and_answers_in_order() -> None:
    def slower_first(request: Request) -> Response:
        number = number_of(request)
        return Response(says(str(number)).body, delay=0.02 * (12 - number))

    with ChatServer(slower_first) as server:
        operator = ask(card(server.address), concurrency=4)
        assert [row["answer"] for row in rows(operator, 12)] == [str(number) for number in range(12)]
        assert server.most == 4
        assert operator.batch == 16


def test_within_a_running_event_loop() -> None:
    async def inside(operator: Ask) -> list[Any]:
        return rows(operator)

    with ChatServer(lambda request: says("a")) as server:
        assert asyncio.run(inside(ask(card(server.address)))) == [{"answer": "a", "probability": None}]


@pytest.mark.parametrize("status", [408, 429, 500, 503])
def test_what_passes_is_asked_again(status: int) -> None:
    def later(request: Request) -> Response:
        return says("at last") if request.before == 2 else Response({"error": {"message": "no"}}, status, SOON)

    with ChatServer(later) as server:
        assert rows(ask(card(server.address), retries=2))[0]["answer"] == "at last"
        assert len(server.requests) == 3


def test_what_does_not_pass_fails_its_row() -> None:
    asked: list[Request] = []

    def never(request: Request) -> Response:
        asked.append(request)
        return Response({"error": {"message": "the model is broken"}}, 500, SOON)

    reason = problem(never, retries=3)
    assert "answered 500" in reason and "the model is broken" in reason
    assert len(asked) == 4


@pytest.mark.parametrize(
    ("response", "kind"),
    [
        (Response({"error": {"message": "busy"}}, 503, SOON), "network"),
        (Response({"error": {"message": "too many"}}, 429, SOON), "network"),
        (Response(says("slow").body, delay=2), "network"),
        (Response(b"<html>502 Bad Gateway</html>", headers={"Content-Type": "text/html"}), "network"),
        (Response(b'{"choices": [{"mess'), "network"),
        (Response({"error": {"message": "the image is too large"}}, 400), None),
        (Response({"error": {"message": "the image is too large"}}, 413), None),
        (Response({"error": {"message": "no"}}, 422), None),
        (says(None, finish="length"), None),
    ],
)
def test_what_is_of_the_moment_and_what_is_of_the_image(response: Response, kind: str | None) -> None:
    with ChatServer(lambda request: response) as server:
        (row,) = rows(ask(card(server.address), timeout=0.5, retries=0))
    assert isinstance(row, RowError)
    assert kind_of(row) == kind


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (402, {"message": "pay first"}),
        (403, {"message": "not yours"}),
        (404, {"message": "the model is gone"}),
        (429, {"message": "You exceeded your current quota", "code": "insufficient_quota"}),
    ],
)
def test_what_no_image_would_get_past_stops_the_step(status: int, error: dict[str, str]) -> None:
    with (
        ChatServer(lambda request: Response({"error": error}, status, SOON)) as server,
        pytest.raises(StopError, match=error["message"]),
    ):
        rows(ask(card(server.address), retries=0), 2)


@pytest.mark.parametrize("response", [Response({}, delay=5), Response(says("slow " * 50).body, trickle=0.05)])
def test_slow_answers_are_given_up(response: Response) -> None:
    started = time.monotonic()
    assert "gave no answer within 0.3 s, asked 1 times" in problem(lambda request: response, timeout=0.3, retries=0)
    assert time.monotonic() - started < 3


@pytest.mark.parametrize(
    ("response", "reason"),
    [
        (Response(b'{"choices": [{"mess'), "sent what cannot be read"),
        (Response(b"<html>Hello</html>", headers={"Content-Type": "text/html"}), "sent no chat completion: <html>"),
        (Response({}), "sent no chat completion"),
        (Response({"choices": []}), "sent no chat completion"),
        (Response({"choices": [{"index": 0}]}), "sent no chat completion"),
        (Response(b"[1, 2]"), "sent no chat completion"),
        (says(None, finish="length"), "sent a message without an answer: finish_reason is length"),
        (
            Response({"choices": [{"index": 0, "message": {"role": "assistant", "refusal": "I must not."}}]}),
            "without an answer: I must not.",
        ),
        (Response({"error": {"message": "the image is too large"}}, 400), "answered 400: .*too large"),
    ],
)
def test_answers_that_are_none(response: Response, reason: str) -> None:
    assert re.search(reason, problem(lambda request: response))


def test_half_a_surrogate_pair_can_be_stored() -> None:
    with ChatServer(lambda request: says("half \ud83d")) as server:
        (row,) = rows(ask(card(server.address)))
    assert pa.array([row["answer"]]).to_pylist() == ["half ?"]


def test_a_shard_in_which_one_image_fails() -> None:
    def answer(request: Request) -> Response:
        number = number_of(request)
        return Response({"error": {"message": "not this one"}}, 400) if number == 2 else says(f"image {number}")

    files = {f"{number}.png": picture(number).data for number in range(6)}
    files["4.png"] = b"broken"
    shard = pa.table({"image_id": list(range(6)), "key": list(files)})
    with ChatServer(answer) as server:
        operator = ask(card(server.address))
        operator.ready()
        operator.load()
        images = ShardImages(list(files), files.__getitem__)
        table, _ = apply(Job(Worker(operator), shard, np.ones(6, dtype=bool)), images)
        assert len(server.requests) == 1 + 5
    assert table.column("answer").to_pylist() == ["image 0", "image 1", None, "image 3", None, "image 5"]
    assert [row["decision"] for row in table.to_pylist()] == ["kept", "kept", "failed", "kept", "failed", "kept"]
    assert "not this one" in table.to_pylist()[2]["decision.reason"]


# ---------------------------------------------------------------- choices and JSON


def test_yes_or_no_with_its_probability() -> None:
    place = {"Yes": math.log(0.5), "No": math.log(0.2), " yes": math.log(0.1), "Maybe": math.log(0.2)}
    with ChatServer(lambda request: says("Yes", [place])) as server:
        (row,) = rows(ask(card(server.address), answers=["yes", "no"]))
    assert row["answer"] == "yes"
    assert row["probability"] == pytest.approx(0.6 / 0.8)
    body = server.requests[0].body
    assert (body["logprobs"], body["top_logprobs"]) == (True, 20)
    assert '"yes", "no"' in server.requests[0].text


@pytest.mark.parametrize("config", [{}, {"top_logprobs": 0}])
def test_without_logprobs_there_is_no_probability(config: dict[str, Any]) -> None:
    with ChatServer(lambda request: says("No, there is none.")) as server:
        (row,) = rows(ask(card(server.address, config=config), answers=["yes", "no"]))
    assert row == {"answer": "no", "probability": None}
    assert ("logprobs" in server.requests[0].body) == (not config)


def test_an_answer_that_is_no_choice_goes_back_once() -> None:
    with ChatServer(lambda request: says("red" if request.before else "crimson")) as server:
        (row,) = rows(ask(card(server.address), answers=["red", "blue"]))
    assert row["answer"] == "red"
    assert [message["role"] for message in server.requests[1].body["messages"]] == ["user", "assistant", "user"]
    assert "must be one of red, blue but is 'crimson'" in server.requests[1].text
    with ChatServer(lambda request: says("crimson")) as server:
        (row,) = rows(ask(card(server.address), answers=["red", "blue"]))
    assert "must be one of red, blue but is 'crimson'" in str(row)
    assert len(server.requests) == 2


def test_json_that_fits() -> None:
    with ChatServer(lambda request: says('{"name": "Zoë", "age": 3}')) as server:
        (row,) = rows(ask(card(server.address), schema=PERSON))
    assert row == {"answer": '{"age":3,"name":"Zoë"}', "probability": None}
    form = server.requests[0].body["response_format"]
    assert form == {"type": "json_schema", "json_schema": {"name": "answer", "schema": PERSON}}


def test_a_server_without_structured_answers_is_only_told() -> None:
    with ChatServer(lambda request: says('Sure:\n```json\n{"name": "a", "age": 3}\n```')) as server:
        (row,) = rows(ask(card(server.address, config={"structured": False}), schema=PERSON))
    assert row["answer"] == '{"age":3,"name":"a"}'
    assert "response_format" not in server.requests[0].body
    assert json.dumps(PERSON) in server.requests[0].text


def test_json_that_does_not_fit_goes_back_once() -> None:
    def better(request: Request) -> Response:
        return says(json.dumps({"name": "a", "age": 3 if request.before else -3}))

    with ChatServer(better) as server:
        (row,) = rows(ask(card(server.address), schema=PERSON))
        assert row["answer"] == '{"age":3,"name":"a"}'
        assert "$.age" in server.requests[1].text
    with ChatServer(lambda request: says('{"name": "a"}')) as server:
        (row,) = rows(ask(card(server.address), schema=PERSON))
        assert isinstance(row, RowError)
        assert "'age' is a required property" in str(row)
        assert len(server.requests) == 2
    with ChatServer(lambda request: says('{"name": "a', finish="length")) as server:
        (row,) = rows(ask(card(server.address), schema=PERSON))
        assert "cut off after max_tokens" in str(row)
        assert len(server.requests) == 1


# ---------------------------------------------------------------- before any image is read


def test_a_good_endpoint_is_ready() -> None:
    with ChatServer(lambda request: says("a")) as server:
        ask(card(server.address), schema=PERSON).ready()
    assert server.requests[0].body["max_tokens"] == 8


def test_a_wrong_key_is_an_error_that_does_not_show_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAR_KEY", "not-the-secret")
    with ChatServer(lambda request: says("a"), key="secret") as server:
        operator = ask(card(server.address, weights={"api_key_env": "FAR_KEY"}))
        with pytest.raises(ModelError, match=r"refuses the key in FAR_KEY: .*Incorrect API key") as error:
            operator.ready()
        with pytest.raises(StopError, match="refuses the key in FAR_KEY") as stop:  # when it is revoked in a run
            rows(operator)
        assert "not-the-secret" not in f"{error.value}{stop.value}"
        with pytest.raises(ModelError, match="refuses requests without a key"):
            ask(card(server.address)).ready()
    assert server.requests == []


def test_a_key_that_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FAR_KEY", raising=False)
    operator = ask(card("http://127.0.0.1:9/v1", weights={"api_key_env": "FAR_KEY"}))
    for step in (operator.ready, operator.load):
        with pytest.raises(ModelError, match=r"environment variable FAR_KEY must hold the key of endpoint .* not set"):
            step()


def test_a_model_that_the_server_has_not() -> None:
    with (
        ChatServer(lambda request: says("a")) as server,
        pytest.raises(ModelError, match=f"`other` does not exist.*architecture must be one of {MODEL} but is other"),
    ):
        ask(card(server.address, architecture="other")).ready()


def test_a_server_that_does_not_understand() -> None:
    with (
        ChatServer(lambda request: Response({"error": {"message": "logprobs: unknown"}}, 422)) as server,
        pytest.raises(ModelError, match=r"answered 422: .*logprobs: unknown.*config\.top_logprobs"),
    ):
        ask(card(server.address), answers=["yes", "no"]).ready()


def test_a_server_that_is_not_there() -> None:
    with ChatServer(lambda request: says("a")) as server:
        gone = ask(card(server.address), retries=0)
    with pytest.raises(ModelError, match=r"endpoint http://127\.0\.0\.1:.* cannot be reached: "):
        gone.ready()
    assert all("cannot be reached" in str(row) for row in rows(gone, 2))


def test_cards_and_parameters_that_do_not_fit_are_refused() -> None:
    address = "http://localhost:1/v1"
    for changes, message in (
        ({"config": {"top_logprob": 3}}, "config.top_logprob"),
        ({"preprocess": {"formats": ["BMP"]}}, "preprocess.formats"),
        ({"dtype": "float16"}, "dtype must be auto"),
    ):
        with pytest.raises(ModelError, match=message):
            ask(card(address, **changes))
    with pytest.raises(OperatorError, match="dtype must be auto with an endpoint"):
        ask(card(address), dtype="float16").load()
    operator = ask(card(address))
    assert not operator.needs().gpu
    assert operator.needs().memory_gb == 0.5


@pytest.mark.parametrize("name", ["cogvlm2-endpoint", "qwen3-vl-endpoint"])
def test_shipped_cards_are_whole(name: str) -> None:
    given = load_card(ROOT / "conf" / "models" / f"{name}.yaml")
    operator = ask(given, answers=["Yes", "No"])
    operator.load()
    assert len(operator.digest()) == 64
    start = "data:image/jpeg;" if name.startswith("cogvlm2") else "data:image/png;"
    assert operator.prepare(picture(3), {}).startswith(start)
