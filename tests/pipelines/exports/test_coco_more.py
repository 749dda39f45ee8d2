"""COCO: captions, and where labels came from."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from pycocotools.coco import COCO

from tests.pipelines.exports.scenes import detection, picture, write_dataset

MODELS = [
    {"step": "detect", "parameter": "model", "reference": "dino@9f2c61ab04d7", "licence": "Apache-2.0"},
    {"step": "ask", "parameter": "model", "reference": "llava@0123456789ab", "licence": "Llama-2"},
]


export = partial(write_dataset, "coco", provenance={"pipeline": "street", "models": MODELS})


def document(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_bytes())
    return found


def test_attributes_say_what_was_asked_and_who_answered(tmp_path: Path) -> None:
    box = (1, 1, 9, 9)
    found = [
        detection("disc", box, prompt="a disc", models=["dino@9f2c61ab04d7", "sam@0123456789ab"]),
        detection("disc", box, models=["dino@9f2c61ab04d7"]),
        detection("disc", box, prompt="a disc"),
        detection("disc", box, models=[]),
        {key: value for key, value in detection("disc", box).items() if key != "models"},
    ]
    export(tmp_path / "coco", [picture(tmp_path / "source", 1, found)])
    written = document(tmp_path / "coco/annotations/instances.json")["annotations"]
    assert [annotation.get("attributes") for annotation in written] == [
        {"prompt": "a disc", "models": ["dino@9f2c61ab04d7", "sam@0123456789ab"]},
        {"models": ["dino@9f2c61ab04d7"]},
        {"prompt": "a disc"},
        None,
        None,
    ]


def test_the_licences_of_models_are_named(tmp_path: Path) -> None:
    export(tmp_path / "coco", [picture(tmp_path / "source", 1, [])], captions=True)
    for kind in ("instances", "captions"):
        content = document(tmp_path / f"coco/annotations/{kind}.json")
        assert content["info"]["provenance"]["models"] == MODELS
        assert content["licenses"] == []
    card = (tmp_path / "coco/README.md").read_text()
    assert "| detect | dino@9f2c61ab04d7 | Apache-2.0 |" in card
    assert "| ask | llava@0123456789ab | Llama-2 |" in card


@pytest.mark.parametrize("splits", [(), ("train", "val")])
def test_pycocotools_reads_captions(tmp_path: Path, splits: tuple[str, ...]) -> None:
    captions = ["A disc.", 'Ünï "quoted"\n猫', None, ""]
    images = [
        picture(tmp_path / "source", number, [], splits[number % 2] if splits else None, caption=caption)
        for number, caption in enumerate(captions, 1)
    ]
    summary = export(tmp_path / "coco", images, splits, captions=True)
    suffixes = [f"_{split}" for split in splits] or [""]
    assert summary.paths == tuple(
        f"annotations/{kind}{suffix}.json" for kind in ("instances", "captions") for suffix in suffixes
    )
    assert summary.images == ({"train": 2, "val": 2} if splits else {"all": 4})
    assert "2 images have no caption and are not in the files of captions." in summary.notes
    read_back = {}
    for suffix in suffixes:
        coco = COCO(str(tmp_path / f"coco/annotations/captions{suffix}.json"))
        assert "categories" not in coco.dataset
        for number in coco.getImgIds():
            (annotation,) = coco.loadAnns(coco.getAnnIds(number))
            assert annotation["id"] == number
            entry = coco.loadImgs(number)[0]
            folder = tmp_path / "coco/images" / suffix.removeprefix("_")
            assert (folder / entry["file_name"]).samefile(images[number - 1].uri)
            read_back[number] = annotation["caption"]
    assert read_back == {1: captions[0], 2: captions[1]}


def test_no_captions_unless_asked_for(tmp_path: Path) -> None:
    export(tmp_path / "coco", [picture(tmp_path / "source", 1, [], caption="A disc.")])
    assert [path.name for path in (tmp_path / "coco/annotations").iterdir()] == ["instances.json"]
