"""Which DuckDB functions a condition may call: those that give the same for the same row, whenever and wherever.

A name often stands for several functions, and DuckDB says of each whether it is CONSISTENT. Which of them a call means
is known once the columns' types are: a name is refused when none of its functions will do, a call when the one that it
is bound to does not.
"""

from __future__ import annotations

import difflib
import json
import threading
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple, cast

if TYPE_CHECKING:
    import duckdb


SELECT = "SELECT "

_threads = threading.local()


def connection() -> duckdb.DuckDBPyConnection:
    """This thread's DuckDB: in memory, one thread, reads no file, loads no extension, sees no Python variable.

    Nothing is optimised: a rewritten expression may compute for every row what CASE computes for some, or hide an
    overflow, and a row's result would depend on what else the query holds.
    """
    if not hasattr(_threads, "connection"):
        import duckdb

        new = duckdb.connect(
            config={
                "enable_external_access": "false",
                "autoload_known_extensions": "false",
                "autoinstall_known_extensions": "false",
                "python_enable_replacements": "false",
                "threads": "1",
            }
        )
        new.execute("SET TimeZone = 'UTC'; PRAGMA disable_optimizer; SET lock_configuration = true")
        _threads.connection = new
    return cast("duckdb.DuckDBPyConnection", _threads.connection)


def forget_connection() -> None:
    """Let this thread begin with a new DuckDB: after an internal error every later query of the old one would fail."""
    _threads.__dict__.pop("connection", None)


def syntax_tree(source: str) -> dict[str, Any]:
    """DuckDB's own tree of ``SELECT <source>``, or its description of what is wrong with it."""
    rows = connection().execute("SELECT json_serialize_sql(?)", [SELECT + source]).fetchall()
    return cast("dict[str, Any]", json.loads(rows[0][0]))


class FunctionError(ValueError):
    """A function that a condition must not call."""


_UNSTABLE = "a condition must depend on its row alone but {} depends on time, chance, settings or other rows"
_USERS_FAULT = {"binder", "catalog", "conversion", "invalid input", "invalid type", "out of range", "parser", "syntax"}
"""Kinds of errors that running the query gives too."""


class _Overload(NamedTuple):
    kind: str  # scalar, macro, aggregate, window, table, table_macro, pragma
    stability: str | None
    macro: str | None  # the expression that a macro stands for
    parameters: tuple[str, ...]  # types: VARCHAR, BIGINT[], ANY, T …
    more: bool  # takes any number of further arguments
    returns: str

    @property
    def takes_lambda(self) -> bool:
        return "LAMBDA" in self.parameters

    @property
    def stable(self) -> bool:
        """Whether a row alone decides what it gives.

        What takes or makes times of a zone depends on the query's settings by the session's zone alone, and that is
        always UTC here (`connection`).
        """
        zoned = any("TIME ZONE" in kind or "TIMESTAMPTZ" in kind for kind in (*self.parameters, self.returns))
        within = self.stability == "CONSISTENT_WITHIN_QUERY" and zoned and bool(self.parameters)
        return self.stability == "CONSISTENT" or within

    def takes(self, arguments: int) -> bool:
        return arguments == len(self.parameters) or (self.more and arguments > len(self.parameters))

    def fits(self, kinds: Sequence[str]) -> bool:
        """Whether arguments of these types, as a bound plan names them (LIST, STRUCT …), can be its parameters."""
        return self.takes(len(kinds)) and all(
            kind == parameter or kind not in _PLAIN or parameter not in _PLAIN
            for kind, parameter in zip(kinds, self.parameters, strict=False)
        )


_PLAIN = {
    "BIGINT", "BIGNUM", "BIT", "BLOB", "BOOLEAN", "DATE", "DECIMAL", "DOUBLE", "FLOAT", "HUGEINT", "INTEGER",
    "INTERVAL", "SMALLINT", "TIME", "TIME WITH TIME ZONE", "TIMESTAMP", "TIMESTAMP WITH TIME ZONE", "TIMESTAMPTZ_NS",
    "TIMESTAMP_MS", "TIMESTAMP_NS", "TIMESTAMP_S", "TIME_NS", "TINYINT", "UBIGINT", "UHUGEINT", "UINTEGER", "USMALLINT",
    "UTINYINT", "UUID", "VARCHAR",
}  # fmt: skip
"""Types that a plan and the catalogue write in the same way; of others (lists, ANY, T) one may be the other."""


class Functions:
    """DuckDB's own catalogue of functions, as a rule for what may be called."""

    def __init__(self) -> None:
        self.catalogue = _catalogue()

    def check(self, node: dict[str, Any]) -> bool:
        """Refuse a call that is not a function of its row alone.

        Args:
            node: A FUNCTION node of DuckDB's syntax tree.

        Returns:
            Whether the function takes lambdas.

        Raises:
            FunctionError: It is unknown, sees more than one row, or depends on time, chance or settings.
        """
        name = node["function_name"].lower()
        path = node["qualified_name"]["path"]
        if len(path) > 1:
            raise FunctionError(f"a function must be written as {path[-1]}(…) but is {'.'.join(path)}(…)")
        overloads = self.catalogue.get(name, ())
        kinds = {overload.kind for overload in overloads}
        over_rows = node["filter"] or node["distinct"] or node["order_bys"]["orders"]
        if over_rows or kinds & {"aggregate", "window"}:
            in_list = f"list_{name}"
            hint = f"; for the values of a list there is {in_list}(…)" if in_list in self.catalogue else ""
            raise FunctionError(f"a condition must look at one image but {name} looks at several{hint}")
        if not {"scalar", "macro"} & kinds or name.startswith("__"):
            if kinds:
                raise FunctionError(f"a condition must not read files, tables or settings but calls {name}")
            raise FunctionError(f"there is no function {name!r}{self._nearest(name)}")
        if not self._is_stable(name, len(node["arguments"]), frozenset()):
            raise FunctionError(_UNSTABLE.format(name))
        return any(overload.takes_lambda for overload in overloads)

    def check_bound(self, query: str) -> None:
        """Refuse a query in which a call is bound to a function that is not of its row alone.

        Args:
            query: One that DuckDB can bind without tables. What it cannot bind is left to whoever runs it.

        Raises:
            FunctionError: Says which function, or that it cannot be told.
        """
        rows = connection().execute("SELECT json_serialize_plan(?)", [query]).fetchall()
        plan = json.loads(rows[0][0])
        if plan["error"] and plan["error_type"].lower() not in _USERS_FAULT:
            raise FunctionError(f"what a condition calls must be known but is not: {plan['error_message']}")
        for name, kinds in _bound(plan.get("plans", ())):
            overloads = [overload for overload in self.catalogue.get(name, ()) if overload.kind == "scalar"]
            bound = [overload for overload in overloads if overload.fits(kinds)] or overloads
            if not all(overload.stable for overload in bound):
                raise FunctionError(_UNSTABLE.format(f"{name} of {' and '.join(kinds) or 'nothing'}"))

    def _is_stable(self, name: str, arguments: int, seen: frozenset[str]) -> bool:
        overloads = self.catalogue.get(name, ())
        if name in seen or not overloads or (name == "age" and arguments == 1):  # age(t) counts from today
            return False
        scalars = [overload for overload in overloads if overload.kind == "scalar"]
        meant = [overload for overload in scalars if overload.takes(arguments)] or scalars
        if meant and not any(overload.stable for overload in meant):
            return False
        for overload in overloads:
            if overload.kind == "aggregate":
                return False
            if overload.macro and not self._macro_is_stable(overload.macro, seen | {name}):
                return False
        return True

    def _macro_is_stable(self, definition: str, seen: frozenset[str]) -> bool:
        tree = syntax_tree(definition)
        return not tree["error"] and self._tree_is_stable(tree["statements"][0]["node"]["select_list"], seen)

    def _tree_is_stable(self, tree: Any, seen: frozenset[str]) -> bool:
        if isinstance(tree, list):
            return all(self._tree_is_stable(item, seen) for item in tree)
        if not isinstance(tree, dict):
            return True
        kind = tree.get("class")
        if kind in ("SUBQUERY", "WINDOW"):
            return False
        if kind == "COLUMN_REF" and tree["column_names"][0].startswith(("current_", "local")):
            return False
        if kind == "FUNCTION" and not self._is_stable(tree["function_name"].lower(), len(tree["arguments"]), seen):
            return False
        return all(self._tree_is_stable(child, seen) for child in tree.values())

    def _nearest(self, name: str) -> str:
        usable = [name for name, overloads in self.catalogue.items() if overloads[0].kind in ("scalar", "macro")]
        near = difflib.get_close_matches(name, usable, n=1, cutoff=0.75)
        return f"; did you mean {near[0]!r}?" if near else ""


@lru_cache(maxsize=1)
def _catalogue() -> dict[str, tuple[_Overload, ...]]:
    """Every function of this DuckDB, under its lower-case name."""
    rows = (
        connection()
        .execute(
            "SELECT lower(function_name), function_type, stability, macro_definition, parameter_types,"
            " varargs IS NOT NULL, coalesce(return_type, '') FROM duckdb_functions() ORDER BY ALL"
        )
        .fetchall()
    )
    found: dict[str, list[_Overload]] = {}
    for name, kind, stability, macro, parameters, more, returns in rows:
        overload = _Overload(kind, stability, macro, tuple(map(str, parameters)), more, returns)
        found.setdefault(name, []).append(overload)
    return {name: tuple(overloads) for name, overloads in found.items()}


def _bound(plan: Any) -> Iterator[tuple[str, list[str]]]:
    """Of every call in a bound plan: the function's name, and the types of the parameters of the one that is bound."""
    if isinstance(plan, list):
        for item in plan:
            yield from _bound(item)
    elif isinstance(plan, dict):
        if plan.get("expression_class") == "BOUND_FUNCTION":
            yield plan["qname"]["path"][-1].lower(), [argument["id"] for argument in plan["arguments"]]
        for child in plan.values():
            yield from _bound(child)
