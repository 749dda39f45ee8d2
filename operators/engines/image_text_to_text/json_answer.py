"""Answers that are JSON and fit a schema."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any


class JsonAnswer:
    """Reads a model's text as JSON.

    Args:
        schema: A JSON schema, of draft 2020-12 unless its ``$schema`` says otherwise (json-schema.org).

    Raises:
        ValueError: It is none, or refers to something outside itself: nothing is fetched.
    """

    def __init__(self, schema: Mapping[str, Any]) -> None:
        from jsonschema import Draft202012Validator, SchemaError, validators
        from referencing import Registry
        from referencing.exceptions import Unresolvable
        from referencing.jsonschema import DRAFT202012

        self.schema = dict(schema)
        kind = validators.validator_for(self.schema, default=Draft202012Validator)
        try:
            kind.check_schema(self.schema)
        except SchemaError as error:
            raise ValueError(f"must be a JSON schema but at {error.json_path}: {error.message}") from error
        nothing: Registry[Any] = Registry()
        own = nothing.with_resource("", DRAFT202012.create_resource(self.schema)).resolver()
        for reference in _references(self.schema):
            try:
                own.lookup(reference)
            except Unresolvable as error:
                raise ValueError(f"must be whole but refers to {reference}, which is not in it") from error
        self._validator = kind(self.schema, registry=nothing)

    @property
    def instruction(self) -> str:
        """What to tell the model besides the prompt."""
        return f"Answer with JSON alone, one value that fits this JSON schema: {json.dumps(self.schema)}"

    def read(self, text: str) -> str:
        """The first JSON value in a text that fits.

        Returns:
            Canonical JSON: keys sorted, no space between tokens, characters as they are.

        Raises:
            ValueError: There is none; with what is wrong with the first one.
        """
        from jsonschema.exceptions import best_match

        problem = ""
        for value in _values(text):
            error = best_match(self._validator.iter_errors(value))
            if error is None:
                written = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
                written.encode()  # half of a surrogate pair has no place in UTF-8
                return written
            problem = problem or f"the answer does not fit the schema: at {error.json_path}: {error.message[:200]}"
        raise ValueError(problem or f"the answer is not JSON: {text[:100]!r}")


def _values(text: str) -> Iterator[Any]:
    """The whole text if it is JSON, else the objects and lists in it, as models wrap them in words and fences.

    What stands inside of a broken or cut-off one is none of them.
    """
    decoder = json.JSONDecoder(parse_constant=_refuse)
    try:
        yield decoder.decode(text.strip())
        return
    except (ValueError, RecursionError):
        place = 0
    while place < len(text):
        if text[place] not in "{[":
            place += 1
            continue
        try:
            value, place = decoder.raw_decode(text, place)
        except (ValueError, RecursionError):
            place = _behind(text, place)
        else:
            yield value


def _behind(text: str, place: int) -> int:
    """Where the bracket at a place is closed; the text's end if it is not."""
    depth = 0
    for end in range(place, len(text)):
        depth += (text[end] in "{[") - (text[end] in "}]")
        if depth == 0:
            return end + 1
    return len(text)


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _references(schema: Any) -> Iterator[str]:
    if isinstance(schema, dict):
        for key, value in schema.items():
            if key in ("$ref", "$dynamicRef") and isinstance(value, str):
                yield value
            else:
                yield from _references(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from _references(value)
