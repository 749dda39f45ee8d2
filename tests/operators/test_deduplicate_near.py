"""`deduplicate`: perceptual and semantic copies, alone and together."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from labelmill.operators.base import TableResult
from labelmill.operators.columns.schemas import embedding
from labelmill.operators.columns.vectors import INFINITE, MISSING, ZERO
from labelmill.operators.deduplicate import Deduplicate
from labelmill.operators.errors import OperatorError
from tests.operators.engines.image_text_to_text.generations import earlier

SCHEMA = pa.schema(
    [
        pa.field("image_id", pa.int64()),
        pa.field("key", pa.string()),
        pa.field("file_hash", pa.string()),
        pa.field("pixel_hash", pa.string()),
        pa.field("phash", pa.uint64()),
        pa.field("phash_variants", pa.list_(pa.uint64(), 8)),
        pa.field("embedding", embedding(2)),
        pa.field("sharpness", pa.float32()),
    ]
)
FAR = 0x0F0F0F0F0F0F0F0F


def image(number: int, bits: int | None = 0, turned: float | None = 0.0, **more: Any) -> dict[str, Any]:
    """An image whose hash has the lowest `bits` bits set, and whose vector is turned by so many degrees."""
    angle = None if turned is None else np.radians(turned)
    return {
        "image_id": number,
        "key": f"{number:03d}.jpg",
        "file_hash": f"f{number}",
        "pixel_hash": f"p{number}",
        "phash": None if bits is None else (1 << bits) - 1,
        "embedding": None if angle is None else np.array([np.cos(angle), np.sin(angle)], np.float16),
        "sharpness": 0.5,
        **more,
    }


def operator_of(**params: Any) -> Deduplicate:
    return Deduplicate(Deduplicate.Params(**params))


def run(operator: Deduplicate, images: list[dict[str, Any]], old: pa.Table | None = None) -> TableResult:
    names = ["image_id", "key", *operator.reads()]
    table = pa.Table.from_pylist(images, SCHEMA).select(names)
    return operator.compute(table, earlier(operator, table) if old is None else old)


def told(operator: Deduplicate, images: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    result = run(operator, images)
    assert result.columns is not None and result.columns.schema.equals(operator.writes())
    return [
        (decision.decision, row["group"], row["kind"], decision.score)
        for decision, row in zip(result.decisions or [], result.columns.to_pylist(), strict=True)
    ]


KEPT = ("kept", None, None)


def test_perceptual_copies_differ_by_a_few_bits() -> None:
    operator = operator_of(by=[], distance=4)
    assert operator.reads() == ("phash",)
    found = run(operator, [image(1, 0), image(2, 4), image(3, 5), image(4, 30)])
    decisions = found.decisions or []
    assert [each.decision for each in decisions] == ["kept", "duplicate", "kept", "kept"]
    assert (decisions[1].reason, decisions[1].score, decisions[1].threshold) == (
        "4 bits of 64 differ from 001.jpg",
        4,
        4,
    )
    assert run(operator, [image(1, 3), image(2, 3)]).decisions[1].reason == "no bit of 64 differ from 001.jpg"  # type: ignore[index]


def test_semantic_copies_have_similar_embeddings() -> None:
    operator = operator_of(by=[], threshold=0.95)
    assert operator.reads() == ("embedding",)
    found = told(operator, [image(1, turned=0), image(2, turned=18), image(3, turned=19), image(4, turned=180)])
    assert [each[:3] for each in found] == [
        ("kept", 1, None),
        ("duplicate", 1, "semantic"),
        ("kept", 3, None),
        ("kept", 4, None),
    ]
    assert found[1][3] == pytest.approx(np.cos(np.radians(18)), abs=1e-3)


def test_in_a_chain_what_is_removed_resembles_what_stays() -> None:
    """1 ~ 2 ~ 3 ~ 4 ~ 5, each only its neighbours."""
    images = [image(number, turned=15.0 * number) for number in range(1, 6)]
    found = told(operator_of(by=[], threshold=0.95), images)
    assert [(each[0], each[1]) for each in found] == [
        ("kept", 1),
        ("duplicate", 1),
        ("kept", 3),
        ("duplicate", 3),
        ("kept", 5),
    ]
    sharp = [{**each, "sharpness": 0.9 if each["image_id"] in (2, 4) else 0.5} for each in images]
    found = told(operator_of(by=[], threshold=0.95, keep="sharpest"), sharp)
    assert [each[0] for each in found] == ["duplicate", "kept", "duplicate", "kept", "duplicate"]


def test_the_first_kind_that_fits_is_named() -> None:
    images = [
        image(1),
        image(2, file_hash="f1", pixel_hash="p1"),
        image(3, pixel_hash="p1"),
        image(4, bits=2),
        image(5, bits=40, turned=5),
        image(6, bits=40, turned=90),
    ]
    found = told(operator_of(distance=4, threshold=0.95), images)
    assert [each[2] for each in found] == [None, "file", "pixels", "perceptual", "semantic", None]
    assert {each[1] for each in found[:5]} == {1}


def test_copies_of_an_image_that_goes_go_with_it() -> None:
    images = [image(1, bits=0), image(2, bits=3, pixel_hash="same"), image(3, bits=3, pixel_hash="same")]
    found = told(operator_of(distance=4), images)
    assert [each[:3] for each in found[1:]] == [("duplicate", 1, "perceptual"), ("duplicate", 1, "perceptual")]


def test_turned_and_mirrored_pictures() -> None:
    def variants(first: int, *others: int) -> dict[str, Any]:
        hashes = [first, *others]
        return {"phash": first, "phash_variants": hashes + [hashes[0]] * (8 - len(hashes))}

    images = [
        {**image(1), **variants(0, FAR)},
        {**image(2), **variants(FAR ^ 1, 0)},
        {**image(3), **variants(~0 % 2**64)},
    ]
    assert [each[0] for each in told(operator_of(by=[], distance=4), images)] == ["kept"] * 3
    operator = operator_of(by=[], distance=4, flips=True)
    assert operator.reads() == ("phash_variants",)
    assert [each[0] for each in told(operator, images)] == ["kept", "duplicate", "kept"]


def test_the_best_is_that_of_an_expression() -> None:
    images = [image(1, sharpness=0.2), image(2, sharpness=None), image(3, sharpness=0.4)]
    operator = operator_of(by=[], distance=4, keep="sharpness * 2 - image_id")
    assert set(operator.reads()) == {"phash", "sharpness"}
    operator.check({"phash": pa.uint64(), "sharpness": pa.float32()})
    assert [each[0] for each in told(operator, images)] == ["kept", "duplicate", "duplicate"]
    assert told(operator_of(by=[], distance=4, keep="sharpness"), images)[2][0] == "kept"


@pytest.mark.parametrize("text", ["sharpness > 0.5", "key", "sharpness and key = 'a'", "sharpness +", "count(*)"])
def test_what_is_no_number_cannot_say_which_is_best(text: str) -> None:
    def check() -> None:
        operator_of(by=[], distance=4, keep=text).check({"phash": pa.uint64(), "sharpness": pa.float32()})

    with pytest.raises(OperatorError) as error:
        check()
    assert error.value.param == ("keep",)


def test_embeddings_must_be_vectors() -> None:
    operator = operator_of(by=[], threshold=0.9)
    with pytest.raises(OperatorError, match="must hold vectors of one length but is string"):
        operator.check({"embedding": pa.string()})


def test_what_cannot_be_compared_fails_by_name() -> None:
    vectors = [[0.0, 0.0], [np.nan, 1.0], [np.inf, 1.0]]
    images = [image(1), image(2, turned=None), *(image(3 + n, embedding=v) for n, v in enumerate(vectors))]
    result = run(operator_of(distance=4, threshold=0.95), [*images, image(6, bits=None)])
    decisions = result.decisions or []
    assert [each.decision for each in decisions] == ["kept"] + ["failed"] * 5
    assert [each.reason for each in decisions[1:]] == [MISSING, ZERO, INFINITE, INFINITE, "no hash: phash is null"]


def test_images_that_come_later_leave_what_was_kept() -> None:
    operator = operator_of(by=[], threshold=0.95, keep="sharpest")
    before = [image(1, turned=0), image(2, turned=15), image(3, turned=90)]
    result = run(operator, before)
    old = earlier(operator, pa.Table.from_pylist(before, SCHEMA).select(["image_id", "key", *operator.reads()]), result)
    later = [image(4, turned=10, sharpness=1.0), image(5, turned=30), image(6, turned=31, sharpness=0.9)]
    found = run(operator, later, old)
    assert found.columns is not None
    assert [each.decision for each in found.decisions or []] == ["duplicate", "duplicate", "kept"]
    assert found.columns.column("group").to_pylist() == [1, 6, 6]


@pytest.mark.parametrize("count", [0, 1, 2])
def test_few_images(count: int) -> None:
    images = [image(number) for number in range(count)]
    found = told(operator_of(distance=4, threshold=0.9), images)
    assert [each[0] for each in found] == ["kept", "duplicate"][:count]


def test_all_the_same() -> None:
    images = [image(number, file_hash="f", pixel_hash="p") for number in range(50)]
    found = told(operator_of(distance=4, threshold=0.9), images)
    assert [each[0] for each in found] == ["kept"] + ["duplicate"] * 49


@pytest.mark.parametrize("keep", ["first", "sharpest", "sharpness * image_id"])
def test_the_order_of_rows_changes_nothing(keep: str) -> None:
    rng = random.Random(0)
    images = [
        image(number, bits=rng.randrange(60), turned=rng.uniform(0, 360), sharpness=rng.choice([0.1, 0.5, None]))
        for number in range(80)
    ]
    operator = operator_of(distance=1, threshold=0.999, keep=keep)
    wanted = {row["image_id"]: told_row for row, told_row in zip(images, told(operator, images), strict=True)}
    assert 10 < sum(each[0] == "kept" for each in wanted.values()) < 70
    for _ in range(3):
        rng.shuffle(images)
        assert {row["image_id"]: each for row, each in zip(images, told(operator, images), strict=True)} == wanted
