"""A request's body: JSON or a form, checked against what the route takes."""

from __future__ import annotations

import hmac
from typing import Any, TypeVar

import orjson
from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException
from starlette.requests import Request
from starlette.responses import Response

from labelmill.pipelines.serve.errors import ApiError
from labelmill.pipelines.serve.images import upload

Body = TypeVar("Body", bound="RequestBody")

SCHEMAS: dict[str, Any] = {}
"""Parts of request bodies that OpenAPI refers to."""


class RequestBody(BaseModel):
    """What every body may have. Fields that a route does not know are passed over, as Inference's server does.

    Attributes:
        api_key: The key, where the server wants one and no header has it.
    """

    model_config = ConfigDict(extra="ignore", protected_namespaces=())

    api_key: str | None = None


async def read_body(request: Request, kind: type[Body]) -> Body:
    """A request's body.

    Raises:
        ApiError: 401 without a key that is needed; 413, 415 or 422.
    """
    media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media == "multipart/form-data":
        given = await _form(request)
    elif media in ("application/json", "") or media.endswith("+json"):
        given = _json(await request.body())
    else:
        raise ApiError(415, f"a body must be application/json or multipart/form-data but is {media[:60]!r}")
    check_key(request, given.get("api_key"))
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        raise ApiError(422, _first(error)) from error


def check_key(request: Request, in_body: Any = None) -> None:
    """Refuse a request without a key, where the server wants one.

    Raises:
        ApiError: 401.
    """
    keys: tuple[str, ...] = request.app.state.server.settings.keys
    if not keys:
        return
    scheme, _, bearer = request.headers.get("authorization", "").partition(" ")
    shown = [bearer.strip() if scheme.lower() == "bearer" else "", request.query_params.get("api_key", ""), in_body]
    if not any(isinstance(each, str) and _is_one_of(each, keys) for each in shown):
        raise ApiError(
            401, "a key is needed: send the header `Authorization: Bearer KEY`, or api_key in the query or the body"
        )


def _is_one_of(shown: str, keys: tuple[str, ...]) -> bool:
    """Compared with all of them, in a time that says nothing about any."""
    text = shown.encode("utf-8", "replace")
    return any([hmac.compare_digest(text, key.encode()) for key in keys])  # noqa: C419 - all of them, always


def answer(content: Any, headers: dict[str, str] | None = None) -> Response:
    """JSON; numpy arrays and numbers are written as lists and numbers."""
    data = orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS)
    return Response(data, media_type="application/json", headers=headers)


def takes(kind: type[RequestBody]) -> dict[str, Any]:
    """What OpenAPI says of a route that reads its body with `read_body`."""
    schema = kind.model_json_schema(ref_template="#/components/schemas/{model}")
    SCHEMAS.update(schema.pop("$defs", {}))
    SCHEMAS[kind.__name__] = schema
    reference = {"schema": {"$ref": f"#/components/schemas/{kind.__name__}"}}
    return {
        "requestBody": {"required": True, "content": {"application/json": reference, "multipart/form-data": reference}}
    }


def _json(data: bytes) -> dict[str, Any]:
    try:
        given = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise ApiError(422, f"the body must be JSON but is not: {error}") from error
    if not isinstance(given, dict):
        raise ApiError(422, f"the body must be a JSON object but is a {type(given).__name__}")
    return given


async def _form(request: Request) -> dict[str, Any]:
    """Fields of a form; lists and objects are JSON, files are images, under `image` or `file`."""
    settings = request.app.state.server.settings
    try:
        form = await request.form(max_files=settings.max_images, max_fields=64, max_part_size=settings.max_body)
    except MultiPartException as error:
        raise ApiError(422, f"the form cannot be read: {error.message}") from error
    except ApiError:
        raise
    except Exception as error:
        if getattr(error, "status_code", 0) == 400:
            raise ApiError(422, f"the form cannot be read: {getattr(error, 'detail', error)}") from error
        raise
    given: dict[str, list[Any]] = {}
    for name, value in form.multi_items():
        if isinstance(value, UploadFile):
            given.setdefault("image" if name in ("file", "files", "images") else name, []).append(
                upload(await value.read())
            )
        else:
            given.setdefault(name, []).append(_field(value))
    await form.close()
    return {name: values[0] if len(values) == 1 else values for name, values in given.items()}


def _field(text: str) -> Any:
    if text[:1] in ("[", "{"):
        try:
            return orjson.loads(text)
        except orjson.JSONDecodeError:
            return text
    return text


def _first(error: ValidationError) -> str:
    """What is wrong, field by field; never what was found, which may be an image or a key."""
    problems = error.errors(include_url=False, include_input=False)
    told = [
        f"{'.'.join(map(str, each['loc'])) or 'the body'}: {each['msg'].removeprefix('Value error, ')}"
        for each in problems
    ]
    return "; ".join(told[:5]) + "; see /docs for what this route takes"
