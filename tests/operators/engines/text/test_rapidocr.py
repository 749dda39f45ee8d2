from __future__ import annotations

import shutil
import socket
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image, ImageDraw, ImageFont

from labelmill.operators.engines.text import rapidocr
from labelmill.operators.errors import OperatorError, RowError
from labelmill.operators.images.decoded import DecodedImage
from labelmill.operators.models import ModelCard, ModelError, load_card, weights
from labelmill.operators.models.card import ROOT
from labelmill.operators.read import SIDES, Read

MODELS = Path(str(find_spec("rapidocr").origin)).parent / "models"  # type: ignore[union-attr]
FILES = ("PP-OCRv6_det_small.onnx", "PP-OCRv6_rec_small.onnx", "ch_ppocr_mobile_v2.0_cls_mobile.onnx")
RECOGNITION = load_card(ROOT / "conf" / "models" / "doctr-recognition-miniature.yaml")
EMPTY = {"words": [], "lines": [], "text": ""}
LINES = ["Stop here now", "KEEP 42", "left"]


def card(folder: Path = MODELS, files: tuple[str, ...] = FILES, **changes: Any) -> ModelCard:
    return ModelCard.model_validate(
        {
            "name": "pp-ocr",
            "task": "ocr",
            "engine": "rapidocr",
            "architecture": "PP-OCRv6",
            "weights": {"path": str(folder / files[0]), "extra_files": files[1:]},
            "preprocess": {"limit_side_len": 128},
            "licence": "Apache-2.0",
            "memory_gb": 1,
            **changes,
        }
    )


def read(given: ModelCard | None = None, **params: Any) -> Read:
    operator = Read(Read.Params(model=given or card(), **params))
    operator.check({})
    operator.ready()
    operator.load()
    return operator


def picture(pixels: np.ndarray) -> DecodedImage:
    return DecodedImage(np.ascontiguousarray(pixels), b"", "PNG", "RGB", 1, 1)


def rows(operator: Read, images: list[np.ndarray], row: dict[str, Any] | None = None) -> list[Any]:
    return operator.infer([operator.prepare(picture(pixels), row or {}) for pixels in images])


def drawn(lines: list[str], size: tuple[int, int] = (420, 240)) -> tuple[np.ndarray, dict[str, list[float]]]:
    """Black words on white, and the box of each."""
    image = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(36)
    boxes = {}
    for number, line in enumerate(lines):
        left, top = 30, 30 + number * 70
        draw.text((left, top), line, "black", font)
        for word in line.split():
            x = left + draw.textlength(line[: line.index(word)], font)
            boxes[word] = list(draw.textbbox((x, top), word, font))
    return np.array(image), boxes


def overlap(word: dict[str, Any], box: list[float]) -> float:
    """Intersection over union."""
    own = [word[side] for side in SIDES]
    wide = max(0.0, min(own[2], box[2]) - max(own[0], box[0]))
    high = max(0.0, min(own[3], box[3]) - max(own[1], box[1]))
    sizes = [(sides[2] - sides[0]) * (sides[3] - sides[1]) for sides in (own, box)]
    return wide * high / (sum(sizes) - wide * high)


@pytest.fixture(scope="module")
def operator() -> Read:
    return read()


@pytest.fixture(scope="module")
def page() -> tuple[np.ndarray, dict[str, list[float]]]:
    return drawn(LINES)


def test_words_are_read_where_they_are(operator: Read, page: tuple[np.ndarray, dict[str, list[float]]]) -> None:
    pixels, boxes = page
    (row,) = rows(operator, [pixels])
    pa.Table.from_pylist([row], schema=operator.writes())
    assert row["text"] == "\n".join(LINES) and [line["text"] for line in row["lines"]] == LINES
    assert [word["text"] for word in row["words"]] == " ".join(LINES).split()
    assert [word["line"] for word in row["words"]] == [0, 0, 0, 1, 1, 2]
    for word in row["words"]:
        assert overlap(word, boxes[word["text"]]) > 0.35  # PP-OCR leaves a margin above and below
        middle, truth = (word["x1"] + word["x2"]) / 2, boxes[word["text"]]
        assert truth[0] < middle < truth[2] and 0.8 < word["confidence"] <= 1
        quad = np.reshape(word["quad"], (4, 2))
        assert quad[0, 0] < quad[1, 0] and quad[1, 1] < quad[2, 1]
        np.testing.assert_allclose([word[side] for side in SIDES], [*quad.min(axis=0), *quad.max(axis=0)], atol=1e-4)
    for before, after in zip(row["words"], row["words"][1:], strict=False):
        assert before["line"] < after["line"] or before["x2"] <= after["x1"]
    assert operator.reads() == () and not operator.needs().gpu and operator.needs().memory_gb == 1


def test_lines_are_rapidocr_s(operator: Read, page: tuple[np.ndarray, dict[str, list[float]]]) -> None:
    from rapidocr import RapidOCR

    own = RapidOCR(params={"Global.log_level": "error", "Det.limit_side_len": 128, "Rec.rec_batch_num": 1})
    wide = np.full((40, 700, 3), 255, np.uint8)  # padded by RapidOCR itself
    wide[:, :420] = page[0][30:70]
    for pixels in (page[0], wide):
        wanted = own(pixels[:, :, ::-1].copy())
        (row,) = rows(operator, [pixels])
        assert wanted.txts and [line["text"] for line in row["lines"]] == list(wanted.txts)
        for number, quad in enumerate(wanted.boxes):
            words = [word for word in row["words"] if word["line"] == number]
            first, last = (np.reshape(words[index]["quad"], (4, 2)) for index in (0, -1))
            np.testing.assert_allclose([first[0], last[1], last[2], first[3]], quad, atol=1e-3)
            if len(words) == 1:  # RapidOCR's mean counts the spaces too
                assert words[0]["confidence"] == pytest.approx(wanted.scores[number], abs=2e-5)


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_turned_text_is_read_from_its_own_top_left(turns: int, operator: Read) -> None:
    """`turns` quarters to the left; the corners turn with the words."""
    pixels, boxes = drawn(["Moonlight harbour"], (420, 100))
    (row,) = rows(operator, [np.rot90(pixels, turns)])
    assert row["text"] == "Moonlight harbour"
    for word in row["words"]:
        x1, y1, x2, y2 = boxes[word["text"]]
        quad = np.reshape(word["quad"], (4, 2))
        upright = {
            1: np.stack([420 - quad[:, 1], quad[:, 0]], axis=1),
            2: np.stack([420 - quad[:, 0], 100 - quad[:, 1]], axis=1),
            3: np.stack([quad[:, 1], 100 - quad[:, 0]], axis=1),
        }[turns]
        np.testing.assert_allclose(upright, [(x1, y1), (x2, y1), (x2, y2), (x1, y2)], atol=20)


def test_a_batch_gives_what_single_images_give_and_twice_the_same(
    operator: Read, page: tuple[np.ndarray, dict[str, list[float]]]
) -> None:
    images = [page[0], drawn(["taxi"], (200, 90))[0], np.zeros((64, 64, 3), np.uint8), page[0][:130]]
    together = rows(operator, images)
    assert together == [rows(operator, [pixels])[0] for pixels in images]
    assert together == rows(operator, images)
    assert together[1]["text"] == "taxi" and together[2] == EMPTY


def test_images_of_any_shape(operator: Read) -> None:
    shapes = [(1, 1), (4, 900), (900, 4), (1500, 5), (5, 1500), (20, 20)]
    assert rows(operator, [np.full((*shape, 3), 255, np.uint8) for shape in shapes]) == [EMPTY] * len(shapes)
    tall = np.full((1200, 120, 3), 255, np.uint8)  # padded to a width of 150
    tall[600:690] = drawn(["taxi"], (120, 90))[0]
    (row,) = rows(operator, [tall])
    assert row["text"] == "taxi"
    (word,) = row["words"]
    assert word["y1"] > 600 and word["y2"] < 690 and word["x2"] <= 120


def test_only_inside_boxes(page: tuple[np.ndarray, dict[str, list[float]]], operator: Read) -> None:
    pixels, boxes = page
    (everything,) = rows(operator, [pixels])
    operator = Read(Read.Params(model=card(), inside=["sign"]))
    operator.load()

    def inside(*names: str) -> dict[str, Any]:
        found = [{**dict(zip(SIDES, boxes[name], strict=True)), "class": "sign"} for name in names]
        result: dict[str, Any] = rows(operator, [pixels], {"detections": found})[0]
        return result

    some = inside("here", "42")
    wanted = [word for word in everything["words"] if word["text"] in ("here", "42")]
    assert some["words"] == [{**word, "line": number} for number, word in enumerate(wanted)]
    assert some["text"] == "here\n42"
    assert inside() == EMPTY
    calls: list[int] = []
    recognise = operator._reader._stages.text_rec.session  # type: ignore[attr-defined]
    operator._reader._stages.text_rec.session = lambda given: calls.append(len(given)) or recognise(given)  # type: ignore[attr-defined]
    assert inside("left")["text"] == "left"
    assert calls == [1]  # lines that touch no box are not read


def test_lines_below_text_score_are_left_out(page: tuple[np.ndarray, dict[str, list[float]]]) -> None:
    strict = read(card(config={"text_score": 1.0}))
    assert all(word["confidence"] == 1 for word in rows(strict, [page[0]])[0]["words"])


def test_without_the_classifier(page: tuple[np.ndarray, dict[str, list[float]]]) -> None:
    upright = read(card(files=FILES[:2]))
    assert rows(upright, [page[0]])[0]["text"] == "\n".join(LINES)


def test_nothing_is_fetched_or_written(monkeypatch: pytest.MonkeyPatch, page: tuple[np.ndarray, Any]) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        pytest.fail("nothing must use the network")

    for owner, name in ((socket.socket, "connect"), (socket, "getaddrinfo"), (socket, "create_connection")):
        monkeypatch.setattr(owner, name, refuse)
    before = {path: path.stat().st_mtime_ns for path in MODELS.parent.rglob("*") if "__pycache__" not in path.parts}
    assert rows(read(), [page[0]])[0]["text"] == "\n".join(LINES)
    assert before == {
        path: path.stat().st_mtime_ns for path in MODELS.parent.rglob("*") if "__pycache__" not in path.parts
    }


def test_values_that_are_not_finite_fail_the_row(page: tuple[np.ndarray, Any]) -> None:
    operator = read()
    operator._reader._detector.session = lambda given: np.full((1, 1, *given.shape[2:]), np.nan, np.float32)  # type: ignore[attr-defined]
    (row,) = rows(operator, [page[0]])
    assert isinstance(row, RowError) and "not finite" in str(row)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "PP-OCRv9"}, r"must be one of PP-OCRv4, PP-OCRv5, PP-OCRv6 but is 'PP-OCRv9'"),
        ({"weights": {"random": 0}}, "weights must not be random with engine rapidocr"),
        ({"weights": {"path": str(MODELS / FILES[0])}}, "extra_files must be the recognition model .* but has 0 files"),
        ({"dtype": "float16"}, "dtype must be auto or float32 with engine rapidocr but is float16"),
        ({"config": {"box_tresh": 0.1}}, "config.box_tresh"),
        ({"preprocess": {"limit_type": "both"}}, "preprocess.limit_type"),
    ],
)
def test_cards_that_cannot_be(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        Read(Read.Params(model=card(**changes))).check({})


def test_parameters_that_do_not_go_together() -> None:
    with pytest.raises(
        OperatorError, match="recognition must not be given with pp-ocr, which reads by itself"
    ) as error:
        Read(Read.Params(model=card(), recognition=RECOGNITION)).check({})
    assert error.value.param == ("recognition",)
    with pytest.raises(
        OperatorError, match="dtype must be auto or float32 with engine rapidocr but is bfloat16"
    ) as error:
        Read(Read.Params(model=card(), dtype="bfloat16")).check({})
    assert error.value.param == ("dtype",)


def test_wrong_weights_are_refused(tmp_path: Path) -> None:
    missing = Read(Read.Params(model=card(tmp_path)))
    with pytest.raises(ModelError, match=r"must be at .* but there is no such file"):
        missing.ready()
    for name in FILES:
        shutil.copy(MODELS / name, tmp_path)
    pinned = card(tmp_path)
    pinned = pinned.model_copy(update={"weights": pinned.weights.model_copy(update={"sha256": "0" * 64})})
    with pytest.raises(ModelError, match="must have sha256 0000"):
        Read(Read.Params(model=pinned)).ready()
    with pytest.raises(ModelError, match="must be a text detection model"):
        read(card(files=(FILES[1], FILES[1])))
    with pytest.raises(ModelError, match="must be a text recognition model"):
        read(card(files=(FILES[0], FILES[2])))
    with pytest.raises(ModelError, match="must be a text direction model"):
        read(card(files=(FILES[0], FILES[1], FILES[1])))
    (tmp_path / FILES[1]).write_bytes(b"no model")
    with pytest.raises(ModelError, match=f"cannot be read from .*{FILES[1]}"):
        read(card(tmp_path))


def test_every_file_and_setting_is_in_the_digest(tmp_path: Path) -> None:
    for name in FILES:
        (tmp_path / name).write_bytes(name.encode())
    digests = {Read(Read.Params(model=card(tmp_path))).digest()}
    for name in FILES:
        (tmp_path / name).write_bytes(b"another " + name.encode())
        digests.add(Read(Read.Params(model=card(tmp_path))).digest())
    digests.add(Read(Read.Params(model=card(tmp_path, config={"box_thresh": 0.6}))).digest())
    assert len(digests) == 5


def test_the_card_that_ships_is_rapidocr_as_it_comes(page: tuple[np.ndarray, Any]) -> None:
    from rapidocr import RapidOCR

    shipped = load_card(ROOT / "conf" / "models" / "pp-ocrv6-small.yaml")
    assert weights.files(shipped) == [MODELS / name for name in FILES]
    own = RapidOCR().cfg
    given = {**shipped.config, **shipped.preprocess}
    known = {**own.Cls, **own.Det, "text_score": own.Global.text_score, "max_side_len": own.Global.max_side_len}
    assert given == {name: known[name] for name in given}
    assert set(given) == {*rapidocr.Config.model_fields, *rapidocr.Preprocess.model_fields}
    assert rows(read(shipped), [page[0]])[0]["text"] == "\n".join(LINES)
