"""`keep`: what a condition may say, what it decides, and what it must never reach."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labelmill.operators.applying.apply import Job, apply
from labelmill.operators.applying.worker import Worker
from labelmill.operators.base import KEPT, Decision
from labelmill.operators.columns.schemas import DETECTIONS, embedding
from labelmill.operators.errors import OperatorError, RowError
from labelmill.operators.expressions import functions, queries
from labelmill.operators.keep import Keep


def keep(where: str) -> Keep:
    return Keep(Keep.Params(where=where))


def box(score: float, name: str = "car") -> dict[str, Any]:
    corners = {"x1": 0.0, "y1": 0.0, "x2": 9.0, "y2": 9.0}
    return {**corners, "class": name, "score": score, "prompt": None, "mask": None}


TABLE = pa.table(
    {
        "image_id": pa.array([1, 2, 3, 4], pa.int64()),
        "key": ["a/1.jpg", "a/2.jpg", "b/3.png", "ü.jpg"],
        "sharpness": pa.array([0.12, 0.3, None, 0.9], pa.float32()),
        "min_side": pa.array([100, 63, 500, 64], pa.int32()),
        "inspect.sharpness": pa.array([0.5, 0.5, 0.1, None], pa.float64()),
        "format": ["JPEG", "JPEG", "PNG", None],
        "text": ["12", "x", None, "7"],
        "face": pa.array([True, False, None, True]),
        "pose": pa.array([{"yaw": 10.0}, {"yaw": -80.0}, {"yaw": None}, None]),
        "gaze.pose": pa.array([{"yaw": 1.0}, {"yaw": 2.0}, {"yaw": 3.0}, None]),
        "select.detections": pa.array([[], [box(0.4)], [box(0.6), box(0.8, "dog")], None], DETECTIONS),
        "source.metadata": ['{"camera": "front"}', '{"camera": "rear"}', "{}", None],
        "embedding": pa.array([np.zeros(4, np.float16)] * 4, embedding(4)),
    }
)


def shown(operator: Keep, table: pa.Table = TABLE) -> pa.Table:
    return table.select(["image_id", "key", *operator.reads()])


def types(operator: Keep) -> dict[str, pa.DataType]:
    return {name: TABLE.schema.field(name).type for name in operator.reads()}


def decide(where: str, table: pa.Table = TABLE) -> list[Decision]:
    operator = keep(where)
    operator.check(types(operator))
    result = operator.compute(shown(operator, table))
    assert result.columns is None
    return list(result.decisions or [])


def kept(where: str) -> list[bool]:
    return [decision == KEPT for decision in decide(where)]


@pytest.mark.parametrize(
    ("where", "reads"),
    [
        ("sharpness >= 0.3", ("sharpness",)),
        ("b > 1 and a > 1 or B2 > a", ("b", "a", "B2")),
        ("inspect.sharpness > sharpness", ("inspect.sharpness", "sharpness")),
        ("gaze.pose.yaw > 0", ("gaze.pose",)),
        ("(pose).yaw > 0 and pose['yaw'] < 9", ("pose",)),
        ('"inspect"."sharpness" > 0', ("inspect.sharpness",)),
        ('x."two words" > 0', ("x.two words",)),
        ('"Größe" > 1', ("Größe",)),
        ("len(select.detections) > 0", ("select.detections",)),
        ('LEN("select".detections) > 0', ("select.detections",)),
        ("'ü' = format and len(select.detections)>0 and end.x > 1", ("format", "select.detections", "end.x")),
        ("len(list_filter(d.e, x -> x.score > 0.5)) > 0", ("d.e",)),
        ("len(list_filter(d.e, lambda x: x.score > least)) > 0", ("d.e", "least")),
        ("list_reduce(d.e, (x, y) -> x + y + z) > 0", ("d.e", "z")),
        ("len([x.score for x in d.e if x.score > y]) > 0", ("d.e", "y")),
        ("len(list_filter(d, X -> x.score > 0)) > 0 and x.score > 0", ("d", "x.score")),
        ("image_id > 5 and key like 'a/%'", ()),
        ("source.metadata ->> 'camera' = 'front'", ("source.metadata",)),
        ("case when a then b else c end", ("a", "b", "c")),
        ("x between lo and hi and y in (u, v)", ("x", "lo", "hi", "y", "u", "v")),
        ("user = 'me'", ("user",)),
        ("true", ()),
    ],
)
def test_reads_are_the_columns_as_written(where: str, reads: tuple[str, ...]) -> None:
    assert keep(where).reads() == reads


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("sharpness >= 0.3", [False, True, False, True]),
        ("sharpness >= 0.3 and min_side >= 64", [False, False, False, True]),
        ("sharpness > inspect.sharpness", [False, False, False, False]),
        ("sharpness < inspect.sharpness", [True, True, False, False]),
        ("len(select.detections) > 0", [False, True, True, False]),
        ("len(list_filter(select.detections, d -> d.score > 0.5)) = 2", [False, False, True, False]),
        ("len(list_filter(select.detections, lambda d: d.class = 'dog')) = 1", [False, False, True, False]),
        ("len([d for d in select.detections if d.score < sharpness]) = 0", [True, True, True, False]),
        ("select.detections[1].score > 0.5", [False, False, True, False]),
        ("gaze.pose.yaw >= 2", [False, True, True, False]),
        ("abs((pose).yaw) < 45", [True, False, False, False]),
        ("source.metadata ->> 'camera' = 'front'", [True, False, False, False]),
        ("format = 'JPEG' or format is null", [True, True, False, True]),
        ("face", [True, False, False, True]),
        ("not face", [False, True, False, False]),
        ("ends_with(key, '.jpg') and image_id < 4", [True, True, False, False]),
        ("coalesce(try_cast(text as int), 0) > 10", [True, False, False, False]),
        ("MIN_SIDE >= 64", None),
        ("list_max(list_transform(select.detections, d -> d.score)) > 0.7", [False, False, True, False]),
        ("if(face, min_side > 70, min_side > 0)", [True, True, True, False]),
        ("true", [True, True, True, True]),
    ],
)
def test_rows_for_which_the_condition_is_true_are_kept(where: str, expected: list[bool] | None) -> None:
    if expected is None:  # another spelling is another name: the pipeline, which knows the columns, says so
        assert keep(where).reads() == ("MIN_SIDE",)
    else:
        assert kept(where) == expected


def test_a_dropped_row_says_what_failed_and_why() -> None:
    first, second, third, fourth = decide("sharpness >= 0.3 and min_side >= 64")
    assert first == Decision("dropped", "sharpness >= 0.3 is false (sharpness = 0.12)", 0.12, 0.3)
    assert second == Decision("dropped", "min_side >= 64 is false (min_side = 63)", 63.0, 64.0)
    assert third == Decision("dropped", "sharpness >= 0.3 is unknown (sharpness is null)", None, 0.3)
    assert fourth == KEPT


def test_a_false_part_outranks_an_unknown_one() -> None:
    reasons = [decision.reason for decision in decide("sharpness > 0 and min_side < 100")]
    assert reasons[2] == "min_side < 100 is false (min_side = 500)"


@pytest.mark.parametrize(
    ("where", "row", "expected"),
    [
        ("0.3 <= sharpness", 0, Decision("dropped", "0.3 <= sharpness is false (sharpness = 0.12)", 0.12, 0.3)),
        ("min_side > -5 + 200", 0, Decision("dropped", "min_side > -5 + 200 is false (min_side = 100)", 100.0, 195.0)),
        (
            "len(select.detections)\n   > 1",
            1,
            Decision("dropped", "len(select.detections) > 1 is false (len(select.detections) = 1)", 1.0, 1.0),
        ),
        ("format = 'PNG'", 0, Decision("dropped", "format = 'PNG' is false (format = 'JPEG')")),
        ("format in ('PNG')", 0, Decision("dropped", "format in ('PNG') is false (format = 'JPEG')")),
        ("min_side between 1 and 2", 0, Decision("dropped", "min_side between 1 and 2 is false (min_side = 100)")),
        ("(min_side > 9 and (face))", 1, Decision("dropped", "face is false")),
        ("face", 2, Decision("dropped", "face is unknown (face is null)")),
        ("not face", 0, Decision("dropped", "not face is false (face = true)")),
        (
            "face or min_side > 70",
            1,
            Decision("dropped", "face or min_side > 70 is false (face = false, min_side = 63)"),
        ),
        ("list_contains(select.detections, null)", 2, None),
        ("select.detections is null", 2, Decision("dropped", "select.detections is null is false "
                                                  "(select.detections has 2 items)")),
        ("sharpness > min_side", 0, Decision("dropped", "sharpness > min_side is false "
                                             "(sharpness = 0.12, min_side = 100)")),
        ("(sharpness) is null", 0, Decision("dropped", "sharpness IS NULL is false (sharpness = 0.12)")),
    ],
)  # fmt: skip
def test_reasons(where: str, row: int, expected: Decision | None) -> None:
    found = decide(where)[row]
    if expected is None:
        assert found.decision == "dropped" and "is unknown" in found.reason
    else:
        assert found == expected


def test_long_values_are_cut() -> None:
    table = TABLE.set_column(1, "key", pa.array(["x" * 500] * 4))
    assert len(decide("key = 'y'", table)[0].reason) < 120


def test_a_row_that_cannot_be_computed_fails_alone() -> None:
    operator = keep("cast(text as int) > 10")
    operator.check(types(operator))
    table, _ = apply(Job(Worker(operator), shown(operator), np.ones(4, dtype=bool)))
    assert table.column("decision").to_pylist() == ["kept", "failed", "dropped", "dropped"]
    reasons = table.column("decision.reason").to_pylist()
    assert "'x'" in reasons[1] and "cast(text as int) > 10" in reasons[1]
    assert reasons[2] == "cast(text as int) > 10 is unknown (cast(text as int) is null)"
    assert table.column("decision.score").to_pylist()[3] == 7.0


def test_overflow_fails_the_row() -> None:
    operator = keep("image_id * 4611686018427387904 > 0")
    table, _ = apply(Job(Worker(operator), shown(operator), np.ones(4, dtype=bool)))
    assert table.column("decision").to_pylist() == ["kept", "failed", "failed", "failed"]


def test_an_earlier_part_guards_a_later_one() -> None:
    assert kept("text <> 'x' and cast(text as int) > 10") == [True, False, False, False]
    guarded = "regexp_full_match(text, '[0-9]+') and cast(text as int) > 5 and cast(text as int) < 10"
    assert kept(guarded) == [False, False, False, True]


def test_sums_differences_and_parts_of_dates_are_functions_of_their_row() -> None:
    for where in ("sharpness + min_side > 0.3", "-sharpness - min_side < 0", "1 - sharpness < 1", "year(a) > 2020",
                  "a + interval 1 day > b", "hour(make_timestamp(2026, 12, 1, 23, 0, 0)) = 23"):  # fmt: skip
        assert keep(where).params.where == where


def test_the_hour_of_a_time_with_a_zone_is_that_of_utc_wherever_it_runs() -> None:
    program = """
import time; time.tzset()
from labelmill.operators.expressions.functions import connection
print(connection().execute("SELECT hour(TIMESTAMPTZ '2026-12-01 12:00:00+00'), "
    "(TIMESTAMPTZ '2026-03-29 00:30:00+00' + INTERVAL 1 DAY)::VARCHAR").fetchall())
"""
    told = {
        subprocess.run(
            [sys.executable, "-c", program], env={**os.environ, "TZ": zone}, capture_output=True, check=True, text=True
        ).stdout
        for zone in ("Asia/Tokyo", "Europe/Berlin", "UTC")
    }
    assert told == {"[(12, '2026-03-30 00:30:00+00')]\n"}


@pytest.mark.parametrize(
    "where",
    [
        "", "   ", "-- nothing", "\0", "sharpness >", "'open", "1=1; drop table x", "1=1; select 2", "1=1) or (1=1",
        "(select 1) = 1", "sharpness in (select 1)", "exists(select 1)", "sharpness = any(text)", "a from rows",
        "a as b", "a, b", "*", "columns('a') > 1", "distinct a", "a > 1 limit 1", "a > 1 order by a", "a > ?", "a > $1",
        "#1 > 1",
        "read_csv('/etc/passwd')", "read_text('/etc/passwd') = ''", "glob('/*')", "getenv('HOME') = ''",
        "unnest(a) > 1",
        "current_setting('threads') = '1'", "getvariable('x') = 1", "sum(a) > 1", "count(*) > 1", "geomean(a) > 1",
        "avg(a) over () > 1", "row_number() over () > 1", "random() < 0.5", "uuid() > ''", "now() > a", "today() > a",
        "current_date > a", "current_timestamp > a", "localtimestamp > a", "age(a) > interval 1 day", "ago(a) > b",
        "pg_sleep(1)", "pg_conf_load_time() > a", "nextval('s') > 1", "nosuch(a)", "main.abs(a) > 1",
        "a.b.round(1) > 1",
        "m -> 'x' = 'y'", "__internal_decompress_string(a) = ''", "a and A", "(" * 3000 + "a" + ")" * 3000,
        "list_filter(d, x -> x > random())", "case when a then (select b) else false end", "error('x')",
    ],
)  # fmt: skip
def test_what_is_not_one_safe_expression_is_refused(where: str) -> None:
    with pytest.raises(OperatorError) as caught:
        keep(where)
    assert caught.value.param == ("where",)
    assert "must" in caught.value.message or "there is no function" in caught.value.message


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("lenght(key) > 1", "did you mean 'length'?"),
        ("sum(a) > 1", "list_sum"),
        ("getenv('HOME') = ''", "no function 'getenv'"),
        ("read_csv('x')", "must not read files"),
        ("random() < 1", "random"),
        ("current_date > a", "current_date"),
    ],
)
def test_a_refusal_says_what_to_do(where: str, words: str) -> None:
    with pytest.raises(OperatorError, match=words.replace("?", r"\?")):
        keep(where)


def taken(where: str, kind: pa.DataType) -> list[bool]:
    """What a condition keeps of pictures taken at noon of 1 and of 3 May 2026, by UTC."""
    days = pa.array([1777636800, 1777809600], pa.timestamp("s", "UTC")).cast(kind)
    table = pa.table({"image_id": [1, 2], "key": ["a", "b"], "taken": days})
    operator = keep(where)
    operator.check({"taken": kind})
    return [decision == KEPT for decision in operator.compute(table).decisions or []]


@pytest.mark.parametrize("kind", [pa.timestamp("us"), pa.timestamp("us", "UTC"), pa.timestamp("us", "Asia/Tokyo")])
@pytest.mark.parametrize(
    "where",
    [
        "taken + interval 30 hours < timestamp '2026-05-03'", "taken - interval 1 day < timestamp '2026-05-02'",
        "taken - timestamp '2026-05-01' < interval 1 day", "day(taken) = 1",
        "date_trunc('day', taken) = timestamp '2026-05-01'",
        "strftime(taken, '%H %d') = '12 01'", "date_diff('day', timestamp '2026-05-01', taken) = 0",
    ],
)  # fmt: skip
def test_times_of_a_zone_are_reckoned_in_utc(where: str, kind: pa.DataType) -> None:
    assert taken(where, kind) == [True, False]


def test_sums_of_columns() -> None:
    assert kept("sharpness + inspect.sharpness > 0.7") == [False, True, False, False]
    assert kept("-min_side + 30 - 1 > 0 and image_id + 1 < 4") == kept("min_side < 29 and image_id < 3")


@pytest.mark.parametrize("stability", ["CONSISTENT_WITHIN_QUERY", "VOLATILE"])
def test_of_several_functions_of_a_name_the_one_that_is_called_is_judged(
    monkeypatch: pytest.MonkeyPatch, stability: str
) -> None:
    from labelmill.operators.expressions import functions

    catalogue = dict(functions._catalogue())
    floats = ("FLOAT", "FLOAT")
    catalogue["+"] = tuple(
        overload._replace(stability=stability if overload.parameters == floats else overload.stability)
        for overload in catalogue["+"]
    )
    monkeypatch.setattr(functions, "_catalogue", lambda: catalogue)
    for where in ("sharpness + sharpness > 0.5", "len(list_filter([1], lambda n: n + sharpness > 1)) > 0"):
        operator = keep(where)
        with pytest.raises(OperatorError, match=r"its row alone but \+ of FLOAT and FLOAT depends on") as caught:
            operator.check(types(operator))
        assert caught.value.param == ("where",)
    for where in ("min_side + 1 > 30", "sharpness::double + 1 > 1.5"):
        operator = keep(where)
        operator.check(types(operator))


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("sharpness", ["must be true or false", "float"]),
        ("min_side and face", ["'min_side' must be true or false"]),
        ("null", ["must be true or false"]),
        ("format > 3", ["VARCHAR", "format is string"]),
        ("len(sharpness) > 1", ["len(FLOAT)", "sharpness is float"]),
        ("sharpness > 'x'", ["'x'", "sharpness is float"]),
        ("(pose).roll > 1", ["roll"]),
        ("regexp_matches(key, '(')", ["missing )"]),
        ("embedding is not null", ["float16", "embedding"]),
        ("key::nosuch > 1", ["nosuch"]),
    ],
)
def test_columns_that_do_not_fit_are_refused_before_the_run(where: str, words: list[str]) -> None:
    operator = keep(where)
    with pytest.raises(OperatorError) as caught:
        operator.check(types(operator))
    assert caught.value.param == ("where",)
    assert all(word in caught.value.message for word in words), caught.value.message
    assert "Candidate functions" not in caught.value.message and "LINE 1" not in caught.value.message


def test_only_referenced_columns_reach_duckdb() -> None:
    operator = keep("sharpness >= 0.3")
    operator.check({**types(operator), "embedding": embedding(4)})
    assert [decision == KEPT for decision in operator.compute(TABLE).decisions or []] == [False, True, False, True]


def test_nothing_outside_the_row_can_be_reached(tmp_path: Any) -> None:
    from labelmill.operators.expressions.functions import connection

    folder = tmp_path / "folder"
    folder.mkdir()
    secret = folder / "secret.csv"
    secret.write_text("a\n1\n")
    visible = pa.table({"a": [1]})
    for query in (f"FROM '{secret}'", f"COPY (SELECT 1) TO '{folder / 'out.csv'}'", "FROM visible", "INSTALL httpfs",
                  "SET enable_external_access = true"):  # fmt: skip
        with pytest.raises(duckdb.Error):
            connection().execute(query)
    assert visible.num_rows == 1 and list(folder.iterdir()) == [secret]


def test_no_rows() -> None:
    assert decide("sharpness > 0.3", TABLE.slice(0, 0)) == []
    assert decide("true", TABLE.slice(0, 0)) == []


def test_chunked_and_dictionary_columns() -> None:
    table = pa.concat_tables([TABLE.slice(2), TABLE.slice(0, 2)])
    table = table.set_column(table.column_names.index("format"), "format", table.column("format").dictionary_encode())
    assert [decision == KEPT for decision in decide("format = 'JPEG'", table)] == [False, False, True, True]


def test_pickled_and_in_threads() -> None:
    operator = pickle.loads(pickle.dumps(keep("sharpness >= 0.3")))
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: operator.compute(shown(operator)).decisions, range(16)))
    assert all(result == results[0] for result in results) and results[0][3] == KEPT


def test_a_shard_takes_milliseconds() -> None:
    operator = keep("sharpness >= 0.3 and width > 25")
    table = pa.table({"image_id": range(256), "key": [str(row) for row in range(256)], "width": range(256),
                      "sharpness": [row / 256 for row in range(256)]})  # fmt: skip
    operator.compute(table)
    times = []
    for _ in range(5):
        started = time.perf_counter()
        operator.compute(table)
        times.append(time.perf_counter() - started)
    assert min(times) < 0.1


REFERENCE = duckdb.connect()
NUMBERS = st.one_of(st.none(), st.integers(-3, 3))
ATOMS = st.sampled_from(
    ["a > 0", "b >= a", "step.c = 1", "a is null", "not (b < 0)", "a between b and 2", "a in (1, b)", "b + step.c > 1",
     "coalesce(a, b) = step.c", "case when a > 0 then b > 0 else step.c > 0 end", "(a = 1 or b = 1)", "abs(a) = 1"]
)  # fmt: skip


@settings(max_examples=50, deadline=None)
@given(
    atoms=st.lists(ATOMS, min_size=1, max_size=4),
    joins=st.lists(st.sampled_from(["and", "or"]), min_size=3, max_size=3),
    rows=st.lists(st.tuples(NUMBERS, NUMBERS, NUMBERS), min_size=1, max_size=8),
)
def test_agrees_with_the_users_own_text_run_by_duckdb(
    atoms: list[str], joins: list[str], rows: list[tuple[int | None, ...]]
) -> None:
    where = atoms[0] + "".join(f" {join} {atom}" for join, atom in zip(joins, atoms[1:], strict=False))
    a, b, c = (pa.array([row[place] for row in rows], pa.int64()) for place in range(3))
    operator = keep(where)
    columns = {"a": a, "b": b, "step.c": c}
    table = pa.table({"image_id": range(len(rows)), "key": [str(row) for row in range(len(rows))], **columns})
    decisions = list(operator.compute(table).decisions or [])
    plain = pa.table({"a": a, "b": b, "step": [{"c": value} for value in c.to_pylist()]})
    REFERENCE.register("plain", plain)
    truth = [row[0] for row in REFERENCE.execute(f"SELECT {where} FROM plain").fetchall()]
    assert [decision == KEPT for decision in decisions] == [value is True for value in truth]
    for decision, value in zip(decisions, truth, strict=True):
        if value is not True:
            assert ("is unknown" if value is None else "is false") in decision.reason
    backwards = operator.compute(table.take(list(range(len(rows)))[::-1])).decisions
    assert list(backwards or [])[::-1] == decisions


def test_compute_raises_a_row_error_that_apply_turns_into_a_decision() -> None:
    operator = keep("cast(text as int) > 10")
    with pytest.raises(RowError, match="cannot be computed"):
        operator.compute(shown(operator))


class Broken:
    """A DuckDB that refuses a table as it does after an internal error, or a query as a machine does."""

    def __init__(self, at_register: Exception | None = None, at_query: Exception | None = None) -> None:
        self.at_register, self.at_query = at_register, at_query

    def register(self, name: str, table: pa.Table) -> None:
        if self.at_register is not None:
            raise self.at_register

    def unregister(self, name: str) -> None: ...

    def sql(self, query: str) -> Any:
        raise self.at_query or AssertionError("nothing was registered")


FATAL = duckdb.FatalException("FATAL Error: Failed: database has been invalidated because of a previous fatal error")


@pytest.mark.parametrize(
    "broken",
    [
        Broken(at_query=FATAL),
        Broken(at_query=duckdb.InternalException("INTERNAL Error: an assertion failed")),
        Broken(at_query=duckdb.IOException("IO Error: cannot start a thread")),
        Broken(at_register=duckdb.InvalidInputException('Python Object "rows" of type "Table" is not suitable')),
        Broken(at_register=AttributeError("partially initialized module 'pandas' has no attribute 'DataFrame'")),
    ],
)
def test_a_duckdb_that_is_broken_is_replaced_and_no_row_pays_for_it(broken: Broken) -> None:
    def in_a_thread() -> list[str]:
        operator = keep("min_side >= 64")
        rows = shown(operator)
        functions._threads.connection = broken
        return [decision.decision for decision in operator.compute(rows).decisions or []]

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(in_a_thread).result() == ["kept", "dropped", "kept", "kept"]
        # The new one stays: what comes later does not meet the broken one again.
        assert pool.submit(lambda: functions.connection() is not broken).result()


@pytest.mark.parametrize(
    ("broken", "decision", "words"),
    [
        (
            Broken(at_register=ImportError("no pandas")),
            "undone",
            "DuckDB does not take a table: ImportError: no pandas",
        ),
        (Broken(at_query=duckdb.IOException("IO Error: disk")), "undone", "DuckDB cannot go on: disk"),
        (Broken(at_query=duckdb.InternalException("INTERNAL Error: bug")), "failed", "InternalException"),
    ],
)
def test_what_a_new_duckdb_says_too_is_of_the_machine_or_of_the_row(
    broken: Broken, decision: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queries, "connection", lambda: broken)
    operator = keep("min_side >= 64")
    table, _ = apply(Job(Worker(operator), shown(operator), np.ones(TABLE.num_rows, bool)))
    assert table.column("decision").to_pylist() == [decision] * TABLE.num_rows
    assert all(words in reason for reason in table.column("decision.reason").to_pylist())
