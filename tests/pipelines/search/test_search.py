from __future__ import annotations

import json
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner

from labelmill.operators.base import ImageOperator, OperatorParams
from labelmill.operators.columns.schemas import embedding
from labelmill.operators.embed import Embed
from labelmill.operators.miniatures.crops import draw_object
from labelmill.operators.models.card import load_card
from labelmill.pipelines.cli import app
from labelmill.pipelines.config.pipeline import load_pipeline
from labelmill.pipelines.engine.terminal import TerminalReporter
from labelmill.pipelines.errors import UserError
from labelmill.pipelines.run import Options, run
from labelmill.pipelines.run_folder.reopen import reopen
from labelmill.pipelines.search import index, search
from labelmill.pipelines.search.contact_sheet import render, write_contact_sheet
from labelmill.pipelines.search.search import Query, search_run
from labelmill.pipelines.steps import chain
from tests.drawing import encode, folder_of_images, noise

CARDS = Path(__file__).resolve().parents[3] / "conf/models"
THINGS = (("car", "red"), ("tree", "green"), ("cup", "blue"), ("fish", "yellow"))
EACH = 4
ODD = "<script>alert('x')</script>.png"


class Mean(ImageOperator):
    """A vector without a model: the mean colour."""

    class Params(OperatorParams):
        pass

    def writes(self) -> Any:
        import pyarrow as pa

        return pa.schema([pa.field("vector", embedding(3))])

    def prepare(self, image: Any, row: Any) -> Any:
        return image.pixels.mean(axis=(0, 1))

    def infer(self, items: list[Any]) -> list[Any]:
        return [{"vector": item.astype(np.float16)} for item in items]


def mill(source: str | Path, output: str | Path, steps: list[Any], **keys: Any) -> str:
    """Run a pipeline on a folder; gives its output."""
    document = {"name": "found", "source": {"folder": str(source)}, "output": str(output), "shard_size": 7,
                "steps": steps, **keys}  # fmt: skip
    file = Path("found.yaml")
    file.write_text(yaml.safe_dump(document))
    run(load_pipeline(file, []), Options(inline=True), TerminalReporter())
    return str(output)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``images`` and a ``run`` of them: objects, a copy, a small one, a broken one, an odd name."""
    folder = tmp_path_factory.mktemp("search")
    images = folder / "images"
    images.mkdir()
    generator = np.random.default_rng(5)
    for kind, colour in THINGS:
        for number in range(EACH):
            Image.fromarray(draw_object(kind, colour, generator)).save(images / f"{colour}-{kind}-{number}.png")
    shutil.copy(images / "red-car-0.png", images / "red-car-copy.png")
    Image.fromarray(draw_object("car", "red", generator, 40)).save(images / "red-car-small.png")
    (images / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 and no more")
    odd = images / ODD
    odd.parent.mkdir()
    Image.fromarray(draw_object("key", "black", generator)).save(odd)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        steps = ["inspect", {"embed": {"model": "clip-miniature"}}, {"keep": "width >= 64"}, {"deduplicate": {}}]
        mill(images, folder / "run", steps)
    return folder


@pytest.fixture
def folder(finished: Path, tmp_path: Path) -> Path:
    """A copy of the run that a test may change; its images stay where they are."""
    shutil.copytree(finished / "run", tmp_path / "run")
    return tmp_path


def keys(found: dict[str, Any]) -> list[str]:
    return [row["key"] for row in found["results"]]


def stored(folder: str) -> dict[str, np.ndarray]:
    """Every image's vector, L2-normalised."""
    _, layout, shards = reopen(folder)
    position = layout.position("embed")
    vectors = {}
    for shard in shards:
        keys = layout.store.read_table(f"shards/{shard:05d}.parquet", ["key"]).column(0).to_pylist()
        values = layout.table(position, shard, ["embedding"]).column(0).to_pylist()
        vectors |= {key: np.array(value) for key, value in zip(keys, values, strict=True) if value is not None}
    return {key: vector / np.linalg.norm(vector) for key, vector in vectors.items()}


class TestAText:
    def test_finds_what_it_says(self, finished: Path) -> None:
        right = 0
        for kind, colour in THINGS:
            found = search_run(str(finished / "run"), Query(text=f"a photo of a {colour} {kind}."), top=EACH)
            assert [row["rank"] for row in found["results"]] == [1, 2, 3, 4]
            right += sum(key.startswith(f"{colour}-{kind}") for key in keys(found))
        assert right >= 0.75 * EACH * len(THINGS), "by chance it would be a fifth"

    def test_finds_the_highest_cosines(self, finished: Path) -> None:
        from labelmill.operators.engines.embedding.encoder import text_encoder

        run = str(finished / "run")
        found = search_run(run, Query(text="a cup"), top=100)
        vector = text_encoder(load_card(CARDS / "clip-miniature.yaml")).encode(["a cup"])[0]
        cosines = {key: float(stored @ vector) for key, stored in stored(run).items()}
        kept = {key for key in cosines if "small" not in key and "copy" not in key}
        assert keys(found) == sorted(kept, key=lambda key: -cosines[key])
        assert [row["cosine"] for row in found["results"]] == pytest.approx(
            [cosines[key] for key in keys(found)], abs=1e-6
        )
        assert found["index"] == {"kind": "flat", "vectors": 19, "recall": None, "shards": 3, "shards_of_run": 3}

    def test_too_long_is_refused(self, finished: Path) -> None:
        with pytest.raises(UserError, match="at most 16 tokens"):
            search_run(str(finished / "run"), Query(text="one two " * 20))

    def test_needs_a_model_with_a_text_side(self) -> None:
        card = load_card(CARDS / "dinov3-small.yaml")
        step = chain([], "embed", "embed", Embed(Embed.Params(model=card)))
        with pytest.raises(UserError, match=r"(?s)text.*--image FILE and --key KEY need no text side"):
            search._of_text("a cup", step)

    def test_needs_a_model_card(self) -> None:
        folder_of_images(Path("data"), 5)
        run = mill("data", "run", ["tests.pipelines.search.test_search:Mean"])
        with pytest.raises(UserError, match=r"no model card for embedding.* use --image FILE or --key KEY"):
            search_run(run, Query(text="a cup"))
        assert len(keys(search_run(run, Query(key="a/0000.jpg")))) == 4
        assert keys(search_run(run, Query(image="data/a/0003.jpg")))[0] == "a/0003.jpg"


class TestAnImage:
    def test_finds_itself_first_and_then_as_its_key(self, finished: Path) -> None:
        run, key = str(finished / "run"), "blue-cup-1.png"
        by_file = search_run(run, Query(image=str(finished / "images" / key)))
        assert keys(by_file)[0] == key
        assert by_file["results"][0]["cosine"] == pytest.approx(1, abs=1e-4)
        by_key = search_run(run, Query(key=key))
        assert keys(by_key) == keys(by_file)[1:], "an image of the run is not told to be like itself"
        number = by_file["results"][0]["image_id"]
        assert by_key["results"] == search_run(run, Query(key=str(number)))["results"]

    @pytest.mark.parametrize(
        ("data", "says"),
        [
            (b"", "empty"),
            (b"no image", "not an image"),
            (b"\xff\xd8\xff\xe0 and no more", "damaged|cut off"),
            (encode(noise(1))[:-200], "cut off"),
            (None, "file"),
        ],
    )
    def test_that_cannot_be_read_is_refused(self, finished: Path, data: bytes | None, says: str) -> None:
        if data is not None:
            Path("query.jpg").write_bytes(data)
        with pytest.raises(UserError, match=says):
            search_run(str(finished / "run"), Query(image="query.jpg"))

    def test_of_a_protocol_that_is_not_known_is_refused(self, finished: Path) -> None:
        with pytest.raises(UserError, match="ftp"):
            search_run(str(finished / "run"), Query(image="ftp://host/a.jpg"))

    def test_of_the_run_must_be_there(self, finished: Path) -> None:
        with pytest.raises(UserError, match=r"did you mean 'blue-cup-1\.png'"):
            search_run(str(finished / "run"), Query(key="blue-cup1.png"))

    def test_of_the_run_must_have_a_vector(self, finished: Path) -> None:
        with pytest.raises(UserError, match=r"'broken.jpg' has no embedding of step 'embed': inspect: failed, "):
            search_run(str(finished / "run"), Query(key="broken.jpg"))


class TestImagesThatWereNotKept:
    def test_are_found_only_when_asked_for(self, finished: Path) -> None:
        run, query = str(finished / "run"), Query(text="a photo of a red car.")
        assert {"red-car-small.png", "red-car-copy.png"}.isdisjoint(keys(search_run(run, query, top=100)))
        outcomes = {row["key"]: row["outcome"] for row in search_run(run, query, 100, everything=True)["results"]}
        assert len(outcomes) == 19
        assert outcomes.pop("red-car-small.png") == "dropped"
        assert outcomes.pop("red-car-copy.png") == "duplicate"
        assert set(outcomes.values()) == {"kept"}

    def test_equal_cosines_come_by_key(self, finished: Path) -> None:
        found = search_run(str(finished / "run"), Query(text="a red car"), 100, everything=True)
        at = keys(found).index("red-car-0.png")
        assert keys(found)[at + 1] == "red-car-copy.png"

    def test_are_known_again_after_a_decision_changed(self, folder: Path) -> None:
        run, query = str(folder / "run"), Query(text="a red car")
        assert "red-car-small.png" not in keys(search_run(run, query, 100))
        _, layout, _ = reopen(run)
        names = [name for name in layout.store.names("index") if name.startswith("kept-")]
        document = yaml.safe_load(Path(run, "pipeline.yaml").read_text())
        mill(document["source"]["folder"], run, [*document["steps"][:2], {"keep": "width >= 30"}])
        assert "red-car-small.png" in keys(search_run(run, query, 100))
        kept = [name for name in layout.store.names("index") if name.startswith("kept-")]
        assert len(names) == len(kept) == 1
        assert names != kept, "what is out of date is gone"


class TestTheStep:
    def test_must_be_there(self) -> None:
        folder_of_images(Path("data"), 3)
        run = mill("data", "run", ["inspect"])
        with pytest.raises(UserError, match="the run run has no embeddings"):
            search_run(run, Query(text="a cup"))

    def test_must_be_named_where_there_are_two(self) -> None:
        folder_of_images(Path("data"), 9)
        run = mill(
            "data", "run", [{"embed": {"model": "clip-random"}}, {"tests.pipelines.search.test_search:Mean": {}}]
        )
        with pytest.raises(UserError, match="add --step: embed, mean"):
            search_run(run, Query(text="a cup"))
        with pytest.raises(UserError, match="must be one of embed, mean but is 'embd'; did you mean 'embed'"):
            search_run(run, Query(text="a cup"), step="embd")
        assert search_run(run, Query(text="a cup"), step="embed")["model"] == "clip-random"
        assert search_run(run, Query(key="a/0000.jpg"), step="mean")["model"] is None

    def test_need_not_be_done_for_all_shards(self, folder: Path) -> None:
        run = str(folder / "run")
        _, layout, _ = reopen(run)
        for position in (1, 2, 3):
            Path(layout.store.path(layout.file(position, 2))).unlink()
        found = search_run(run, Query(text="a red car"), 100)
        assert (found["index"]["shards"], found["index"]["shards_of_run"]) == (2, 3)
        assert 0 < len(keys(found)) < 17
        for shard in (0, 1):
            Path(layout.store.path(layout.file(1, shard))).unlink()
        with pytest.raises(UserError, match=r"step 'embed' of .* has no result yet"):
            search_run(run, Query(text="a red car"))


class TestTheIndexOfARun:
    def test_is_kept_and_used_again(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        run, query = str(folder / "run"), Query(key="blue-cup-1.png")
        first = search_run(run, query)
        monkeypatch.setattr(index, "build", None)
        assert search_run(run, query) == first

    def test_is_built_again_when_images_were_added(self, folder: Path, finished: Path) -> None:
        shutil.copytree(finished / "images", "images")
        steps = [{"embed": {"model": "clip-random"}}]
        run = mill("images", "run", steps)
        query = Query(image=str(finished / "images/blue-cup-1.png"))
        assert search_run(run, query)["index"]["vectors"] == 19
        shutil.copy("images/blue-cup-1.png", "images/another.png")
        mill("images", "run", steps)
        found = search_run(run, query)
        assert found["index"]["vectors"] == 20
        assert keys(found)[:2] == ["another.png", "blue-cup-1.png"], "equal, so by key"
        assert len(list(Path(run, "index").glob("*/*.faiss"))) == 1, "the older one is gone"

    @pytest.mark.parametrize("harm", ["cut", "changed", "gone", "unfinished", "other"])
    def test_is_built_again_when_its_file_is_not_whole(self, folder: Path, harm: str) -> None:
        run, query = str(folder / "run"), Query(key="blue-cup-1.png")
        first = search_run(run, query)
        file = next(Path(run, "index").glob("*/*.faiss"))
        facts, good = file.with_suffix(".json"), file.read_bytes()
        if harm == "cut":
            file.write_bytes(good[:-1000])
        elif harm == "changed":
            file.write_bytes(good[:500] + b"\xff" + good[501:])
        elif harm == "gone":
            file.unlink()
        elif harm == "unfinished":
            facts.unlink()
        else:
            facts.write_text("{}")
        assert search_run(run, query) == first
        assert file.read_bytes() == good

    def test_of_a_run_that_cannot_be_written_to_is_not_kept(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*_: Any) -> None:
            raise PermissionError("read-only")

        run = str(folder / "run")
        monkeypatch.setattr("labelmill.pipelines.run_folder.store.Store.write", refuse)
        found = search_run(run, Query(text="a red car"))
        assert len(found["results"]) == 17
        with pytest.raises(UserError, match=r"contact sheet cannot be written to .*read-only"):
            write_contact_sheet(found)


class TestAQuery:
    def test_must_be_one(self) -> None:
        with pytest.raises(UserError, match="one of a text, --image FILE and --key KEY but has 0"):
            Query()
        with pytest.raises(UserError, match="but has 2"):
            Query(text="a", key="b")

    def test_must_say_something(self) -> None:
        with pytest.raises(UserError, match="must not be empty"):
            Query(text=" ")


class Page(HTMLParser):
    """What a page holds: tags, attributes and visible text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._style = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._style = tag == "style"

    def handle_data(self, data: str) -> None:
        if not self._style:
            self.text += data

    def all(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag == name]


def asked(finished: Path, query: Query, **options: Any) -> dict[str, Any]:
    return search_run(str(finished / "run"), query, 100, **options)


def from_disk(uri: str) -> bytes:
    from labelmill.pipelines.sources import Fetcher

    return Fetcher()(uri)


class TestAContactSheet:
    def test_shows_every_result_and_needs_nothing_else(self, finished: Path) -> None:
        found = asked(finished, Query(key="blue-cup-1.png"), everything=True)
        page = Page(render(found, from_disk))
        pictures = page.all("img")
        assert [picture["alt"] for picture in pictures] == ["The image that was asked for", *keys(found)]
        assert all((picture["src"] or "").startswith("data:image/") for picture in pictures)
        assert not page.all("script") + page.all("link") + page.all("iframe") + page.all("a")
        assert page.all("html") == [{"lang": "en"}]
        assert "default-src 'none'" in str(page.all("meta"))
        for row in found["results"]:
            assert row["key"] in page.text
            assert f"{row['rank']}. {row['cosine']:.3f}" in page.text
        assert page.text.count("· dropped") == page.text.count("· duplicate") == 1

    def test_names_stay_text(self, finished: Path) -> None:
        found = asked(finished, Query(text="<b>key</b> \" on='x'"))
        assert ODD in keys(found)
        page = Page(render(found, from_disk))
        assert not page.all("script") + page.all("b")
        assert ODD in page.text
        assert "<b>key</b>" in page.text
        assert all(set(picture) == {"src", "alt"} for picture in page.all("img"))

    def test_has_a_place_for_images_that_cannot_be_shown(self, finished: Path) -> None:
        from labelmill.operators.errors import RowError

        found = asked(finished, Query(text="a cup"))

        def gone(uri: str) -> bytes:
            if uri.endswith("blue-cup-1.png"):
                raise RowError("there is no <file> any more")
            return b"broken" if uri.endswith("blue-cup-2.png") else from_disk(uri)

        page = Page(render(found, gone))
        assert len(page.all("img")) == len(keys(found)) - 2
        assert "there is no <file> any more" in page.text
        holders = [attributes["aria-label"] for attributes in page.all("p") if attributes.get("role") == "img"]
        assert [str(holder).partition(":")[0] for holder in sorted(map(str, holders))] == [
            "blue-cup-1.png cannot be shown",
            "blue-cup-2.png cannot be shown",
        ]

    def test_is_small_for_large_images(self, finished: Path) -> None:
        found = asked(finished, Query(text="a cup"))
        found["results"] = found["results"][:3]
        large = encode(Image.fromarray(np.random.default_rng(0).integers(0, 255, (2000, 1000, 3), np.uint8)))
        assert len(render(found, lambda uri: large)) < 1_000_000 < len(large) * 3

    def test_of_nothing_says_so(self, finished: Path) -> None:
        found = {**asked(finished, Query(text="a cup")), "results": []}
        assert "No image was found" in Page(render(found, from_disk)).text

    def test_of_the_same_search_is_the_same_file(self, folder: Path) -> None:
        run = str(folder / "run")
        first = write_contact_sheet(search_run(run, Query(text="a cup / ../../x")))
        page = Path(first).read_bytes()
        assert Path(first).parent == Path(run, "search")
        assert write_contact_sheet(search_run(run, Query(text="a cup / ../../x"))) == first
        assert Path(first).read_bytes() == page
        assert write_contact_sheet(search_run(run, Query(text="a cup"))) != first


class TestTheCommand:
    def test_prints_keys_and_where_the_sheet_is(self, folder: Path) -> None:
        shown = CliRunner().invoke(app, ["search", str(folder / "run"), "a photo of a red car.", "--top", "3"])
        assert shown.exit_code == 0, shown.output
        lines = shown.output.splitlines()
        assert sum(line.strip().startswith("0.") and ".png" in line for line in lines) == 3
        sheet = Path(lines[-1].removeprefix("contact sheet: "))
        assert sheet.read_text().startswith("<!doctype html>")

    def test_prints_json(self, folder: Path) -> None:
        words = ["search", str(folder / "run"), "--key", "blue-cup-1.png", "--all", "--json"]
        told = json.loads(CliRunner().invoke(app, words).output)
        assert told["query"] == {"key": "blue-cup-1.png"}
        assert len(told["results"]) == 18
        assert Path(told["sheet"]).is_file()

    def test_refuses_without_a_traceback(self, folder: Path) -> None:
        shown = CliRunner().invoke(app, ["search", str(folder / "run")])
        assert shown.exit_code == 2
        assert "Traceback" not in shown.output


def test_run_and_images_on_an_object_store(s3: str) -> None:
    import fsspec

    system = fsspec.filesystem("s3")
    for number in range(9):
        system.pipe_file(f"{s3}/images/{number}.jpg", encode(noise(number, level=20 * number)))
    run = mill(f"s3://{s3}/images", f"s3://{s3}/run", ["tests.pipelines.search.test_search:Mean"])
    query = Query(image=f"s3://{s3}/images/4.jpg")
    found = search_run(run, query)
    assert keys(found)[0] == "4.jpg"
    assert search_run(run, query) == found, "from the index that was kept"
    sheet = write_contact_sheet(found)
    assert sheet.startswith(f"s3://{s3}/run/search/")
    page = Page(system.cat_file(sheet).decode())
    assert len(page.all("img")) == 10
