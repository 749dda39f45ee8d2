"""Conditions on columns: one DuckDB expression, read once by DuckDB's own parser, that can reach nothing but its row.

How a reference is read: ``sharpness`` is the column of that name; ``inspect.sharpness`` is the column `sharpness` of
the step `inspect`; what follows is a field, so ``pose.face.yaw`` is the field `yaw` of the column ``pose.face``.
A field of a column named without its step is written ``(face).yaw`` or ``face['yaw']``. A step may be called like
an SQL keyword: ``len(select.detections) > 0`` needs no quotes. Time stamps are read in UTC.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from labelmill.operators.expressions.functions import SELECT, FunctionError, Functions, connection, syntax_tree

ALWAYS = ("image_id", "key")
"""Columns that every operator is given; conditions may use them without reading them."""

_TIME_WORDS = {"current_date", "current_time", "current_timestamp", "localtime", "localtimestamp"}

_NODES = {
    "BETWEEN", "CASE", "CAST", "COLLATE", "COLUMN_REF", "COMPARISON", "CONJUNCTION", "CONSTANT", "FUNCTION", "OPERATOR",
    "TYPE",
}  # fmt: skip
_OPERATORS = {
    "ARRAY_CONSTRUCTOR", "ARRAY_EXTRACT", "ARRAY_SLICE", "COMPARE_IN", "COMPARE_NOT_IN", "OPERATOR_COALESCE",
    "OPERATOR_IS_NOT_NULL", "OPERATOR_IS_NULL", "OPERATOR_NOT", "OPERATOR_NULLIF", "OPERATOR_TRY", "STRUCT_EXTRACT",
}  # fmt: skip
_REFUSED = {
    "SUBQUERY": "a query inside the condition",
    "WINDOW": "a window over several images",
    "STAR": "*",
    "PARAMETER": "a parameter",
    "POSITIONAL_REFERENCE": "a position",
    "LAMBDA": "-> outside list_filter, list_transform and list_reduce (for a JSON value write ->>)",
}

Node = dict[str, Any]


class ExpressionError(ValueError):
    """The text is not one expression over the row's columns."""


@dataclass(frozen=True, slots=True)
class Value:
    """A piece of a condition: as the user wrote it, as SQL over the table's columns, and whether it is a constant."""

    text: str
    sql: str
    constant: bool


@dataclass(frozen=True, slots=True)
class Part:
    """One of the conditions that AND joins at the top.

    Attributes:
        text: As the user wrote it.
        sql: The same over the table's columns.
        values: What explains its outcome: the sides of a comparison, else the columns it refers to.
        compares: Whether it is ``=``, ``!=``, ``<``, ``<=``, ``>`` or ``>=`` between the two `values`.
    """

    text: str
    sql: str
    values: tuple[Value, ...]
    compares: bool


@dataclass(frozen=True, slots=True)
class Expression:
    """A condition that was read and found safe.

    Attributes:
        reads: The columns it refers to as written, in order of appearance, without `image_id` and `key`.
        inputs: `reads` and those of `image_id` and `key` that it refers to.
        parts: What AND joins at the top; all must be true.
    """

    reads: tuple[str, ...]
    inputs: tuple[str, ...]
    parts: tuple[Part, ...]


@lru_cache(maxsize=256)
def parse(text: str) -> Expression:
    """Read a condition.

    Args:
        text: One DuckDB expression. Functions of one row only: no query, aggregate, window, file or setting, and
            nothing that depends on time or chance.

    Raises:
        ExpressionError: It is something else; says what.
    """
    if not text.strip():
        raise ExpressionError('a condition must be an expression such as "sharpness >= 0.3" but is empty')
    if "\0" in text:
        raise ExpressionError("a condition must be text but holds a null character")
    return _Reader(text).read()


class _Reader:
    def __init__(self, text: str) -> None:
        self.source, self.inserted = _quote_step_names(text)
        self.functions = Functions()
        self.columns: dict[str, None] = {}
        self.frame = self._statement("true")[0]

    def read(self) -> Expression:
        top = self._parse(self.source)
        rewritten = self._rewrite(top, frozenset())
        inputs = tuple(self.columns)
        lowered: dict[str, str] = {}
        for name in inputs:
            other = lowered.setdefault(name.lower(), name)
            if other != name:
                raise ExpressionError(f"column {name!r} must be written in one way but is also {other!r}")
        pairs = zip(_conjuncts(top), _conjuncts(rewritten), strict=True)
        parts = tuple(self._part(node, new) for node, new in pairs)
        return Expression(tuple(name for name in inputs if name not in ALWAYS), inputs, parts)

    def _part(self, node: Node, new: Node) -> Part:
        compares = node["class"] == "COMPARISON" and "DISTINCT" not in node["type"]
        if compares:
            shown = [(node[side], new[side]) for side in ("left", "right")]
        elif node["class"] == "BETWEEN":
            shown = [(node["input"], new["input"])]
        elif node["type"] in ("COMPARE_IN", "COMPARE_NOT_IN"):
            shown = [(node["children"][0], new["children"][0])]
        else:
            shown = list(zip(_references(node), _references(new), strict=True))
        values = dict.fromkeys(
            Value(self._text(old_value), self._sql(new_value), not any(_references(new_value)))
            for old_value, new_value in shown
        )
        return Part(self._text(node), self._sql(new), tuple(values), compares and len(values) == 2)

    def _parse(self, source: str) -> Node:
        """The tree of the one expression in `source`.

        `SELECT true` gives the same statement in everything but its list, so whatever else differs (FROM, WHERE,
        LIMIT, DISTINCT …) is not part of an expression.
        """
        node, select_list = self._statement(source)
        if node != self.frame or len(select_list) != 1 or select_list[0]["alias"]:
            raise ExpressionError("a condition must be one expression, without FROM, AS, commas or a second statement")
        return select_list[0]

    def _statement(self, source: str) -> tuple[Node, list[Node]]:
        tree = syntax_tree(source)
        if tree["error"] and tree["error_type"] != "not implemented":
            raise ExpressionError(f"a condition must be one DuckDB expression: {tree['error_message']}")
        if tree["error"] or len(tree["statements"]) != 1 or tree["statements"][0]["node"]["type"] != "SELECT_NODE":
            raise ExpressionError("a condition must be one expression but holds another statement")
        node = tree["statements"][0]["node"]
        return node, node.pop("select_list")

    def _rewrite(self, node: Any, bound: frozenset[str]) -> Any:
        """A copy whose references are the table's columns; `bound` are the lambda parameters around it, lower case."""
        if isinstance(node, list):
            return [self._rewrite(item, bound) for item in node]
        if not isinstance(node, dict):
            return node
        kind = node.get("class")
        if kind == "COLUMN_REF":
            return self._reference(node, bound)
        if kind is not None:
            _refuse(node)
        if kind != "FUNCTION":
            return {name: self._rewrite(child, bound) for name, child in node.items()}
        try:
            takes_lambda = self.functions.check(node)
        except FunctionError as error:
            raise ExpressionError(str(error)) from None
        arguments = []
        for argument in node["arguments"]:
            child = argument["expression"]
            is_lambda = takes_lambda and child["class"] == "LAMBDA"
            new = self._lambda(child, bound) if is_lambda else self._rewrite(child, bound)
            arguments.append({**argument, "expression": new})
        return {**node, "arguments": arguments}

    def _reference(self, node: Node, bound: frozenset[str]) -> Node:
        names = node["column_names"]
        if names[0].lower() in bound:
            return node
        if len(names) == 1 and names[0].lower() in _TIME_WORDS:
            raise ExpressionError(f"a condition must give the same result at any time but uses {names[0]}")
        column = ".".join(names[:2])
        self.columns[column] = None
        return {**node, "column_names": [column, *names[2:]]}

    def _lambda(self, node: Node, bound: frozenset[str]) -> Node:
        """The older arrow is rewritten as the keyword, which every DuckDB binds."""
        parameters = frozenset(ref["column_names"][0].lower() for ref in _references(node["lhs"]))
        body = self._rewrite(node["expr"], bound | parameters)
        return {**node, "expr": body, "syntax_type": "LAMBDA_KEYWORD"}

    def _sql(self, node: Node) -> str:
        statement = {"error": False, "statements": [{"node": {**self.frame, "select_list": [node]}}]}
        rows = connection().execute("SELECT json_deserialize_sql(?::JSON)", [json.dumps(statement)]).fetchall()
        return str(rows[0][0]).removeprefix(SELECT)

    def _text(self, node: Node) -> str:
        """What the user wrote for `node`; in DuckDB's own words where its position is not exact."""
        source = self.source.encode()
        spans = [(first - len(SELECT), last - len(SELECT)) for first, last in _spans(node)]
        start, end = min((span[0] for span in spans), default=0), max((span[1] for span in spans), default=0)
        if self._means(source[start:end].decode(errors="replace"), node):
            kept = (byte for at, byte in enumerate(source[start:end], start) if at not in self.inserted)
            return " ".join(bytes(kept).decode(errors="replace").split())
        canonical = self._sql(node)
        return canonical[1:-1] if self._means(canonical[1:-1], node) else canonical

    def _means(self, source: str, node: Node) -> bool:
        try:
            return bool(_bare(self._parse(source)) == _bare(node))
        except ExpressionError:
            return False


def _quote_step_names(text: str) -> tuple[str, frozenset[int]]:
    """Quote keywords that a dot and a name follow (``select.detections``): nothing else can stand there.

    Returns:
        The text with quotes, and the byte positions of the quotes in it.
    """
    import duckdb

    source, quoted, inserted, copied = text.encode(), bytearray(), set(), 0
    for start, kind in duckdb.tokenize(text):
        end = start
        while source[end : end + 1].isalpha() or source[end : end + 1] == b"_":
            end += 1
        following = source[end + 1 : end + 2]
        is_name = following.isalpha() or following in (b"_", b'"') or following >= b"\x80"
        if kind != duckdb.token_type.keyword or source[end : end + 1] != b"." or not is_name:
            continue
        quoted += source[copied:start]
        inserted |= {len(quoted), len(quoted) + 1 + end - start}
        quoted += b'"' + source[start:end] + b'"'
        copied = end
    return (quoted + source[copied:]).decode(), frozenset(inserted)


def _refuse(node: Node) -> None:
    kind = node["class"]
    if kind not in _NODES or (kind == "OPERATOR" and node["type"] not in _OPERATORS):
        found = _REFUSED.get(kind, node["type"].lower().replace("_", " "))
        raise ExpressionError(f"a condition must be an expression over the columns of one image but holds {found}")


def _conjuncts(node: Node) -> Iterator[Node]:
    if node["type"] == "CONJUNCTION_AND":
        for child in node["children"]:
            yield from _conjuncts(child)
    else:
        yield node


def _references(node: Any, bound: frozenset[str] = frozenset()) -> Iterator[Node]:
    """References to columns below `node`, in order; lambda parameters are none."""
    if isinstance(node, list):
        for item in node:
            yield from _references(item, bound)
    elif isinstance(node, dict):
        if node.get("class") == "COLUMN_REF":
            if node["column_names"][0].lower() not in bound:
                yield node
        elif node.get("class") == "LAMBDA":
            parameters = frozenset(ref["column_names"][0].lower() for ref in _references(node["lhs"]))
            yield from _references(node["expr"], bound | parameters)
        else:
            for child in node.values():
                yield from _references(child, bound)


def _spans(node: Any) -> Iterator[tuple[int, int]]:
    """Byte ranges of the nodes that have one; some cover less than their children."""
    if isinstance(node, list):
        for item in node:
            yield from _spans(item)
    elif isinstance(node, dict):
        if node.get("query_location_length", 0) > 0:
            yield node["query_location"], node["query_location"] + node["query_location_length"]
        for child in node.values():
            yield from _spans(child)


def _bare(node: Any) -> Any:
    """The tree without positions."""
    if isinstance(node, list):
        return [_bare(item) for item in node]
    if isinstance(node, dict):
        return {name: _bare(child) for name, child in node.items() if not name.startswith("query_location")}
    return node
