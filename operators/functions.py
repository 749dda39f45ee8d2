"""Which DuckDB functions a condition may call: those that give the same for the same row, whenever and wherever."""

from __future__ import annotations

import difflib
import json
import threading
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


def syntax_tree(source: str) -> dict[str, Any]:
    """DuckDB's own tree of ``SELECT <source>``, or its description of what is wrong with it."""
    rows = connection().execute("SELECT json_serialize_sql(?)", [SELECT + source]).fetchall()
    return cast("dict[str, Any]", json.loads(rows[0][0]))


class FunctionError(ValueError):
    """A function that a condition must not call."""


class _Overload(NamedTuple):
    kind: str  # scalar, macro, aggregate, window, table, table_macro, pragma
    stability: str | None
    macro: str | None  # the expression that a macro stands for
    takes_lambda: bool


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
            raise FunctionError(
                f"a condition must depend on its row alone but {name} depends on time, chance, settings or other rows"
            )
        return any(overload.takes_lambda for overload in overloads)

    def _is_stable(self, name: str, arguments: int, seen: frozenset[str]) -> bool:
        overloads = self.catalogue.get(name, ())
        if name in seen or not overloads or (name == "age" and arguments == 1):  # age(t) counts from today
            return False
        for overload in overloads:
            if overload.kind == "scalar" and overload.stability != "CONSISTENT":
                return False
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
            "SELECT lower(function_name), function_type, stability, macro_definition,"
            " list_contains(parameter_types, 'LAMBDA') FROM duckdb_functions() ORDER BY ALL"
        )
        .fetchall()
    )
    found: dict[str, list[_Overload]] = {}
    for name, kind, stability, macro, takes_lambda in rows:
        found.setdefault(name, []).append(_Overload(kind, stability, macro, bool(takes_lambda)))
    return {name: tuple(overloads) for name, overloads in found.items()}
