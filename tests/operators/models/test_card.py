from __future__ import annotations

import hashlib
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file

from labelmill.operators.models import ModelCard, ModelError, load_card, weights
from labelmill.operators.models.card import ROOT
from labelmill.operators.models.device import inference, pick_dtype, seeded

CARDS = sorted((ROOT / "conf" / "models").glob("*.yaml"))


def card(weights: dict[str, Any], **changes: Any) -> ModelCard:
    fields = {
        "name": "small",
        "task": "embedding",
        "engine": "open_clip",
        "architecture": "ViT-B-32",
        "licence": "MIT",
        "memory_gb": 1,
        **changes,
    }
    return ModelCard.model_validate({**fields, "weights": weights})


def write_card(path: Path, **changes: Any) -> Path:
    fields = card({"random": 0}).model_dump(mode="json", exclude={"name"}, exclude_none=True)
    path.write_text(yaml.safe_dump({**fields, **changes}))
    return path


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def tensors(tmp_path: Path) -> Path:
    path = tmp_path / "weights.safetensors"
    save_file({"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4)}, path)
    return path


class Serve:
    """An HTTP server on this machine, for the length of a `with`."""

    def __init__(self, handler: Callable[..., BaseHTTPRequestHandler]) -> None:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)

    def __enter__(self) -> str:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{self._server.server_port}"

    def __exit__(self, *args: object) -> None:
        self._server.shutdown()
        self._server.server_close()


# ---------------------------------------------------------------- cards


def waits_for_a_file(card: ModelCard) -> bool:
    """Whether a card says that its weights do not ship, and how to come by them."""
    note = card.note.lower()
    return card.weights.path is not None and "get the file" in note


@pytest.mark.parametrize("path", CARDS, ids=lambda path: path.stem)
def test_shipped_card_is_whole(path: Path) -> None:
    shipped = load_card(path)
    assert shipped.name == path.stem
    if waits_for_a_file(shipped):
        with pytest.raises(ModelError, match="no such file"):
            shipped.digest()
        return
    assert len(shipped.digest()) == 64
    elsewhere = shipped.weights.random is not None or shipped.weights.endpoint is not None
    assert elsewhere or not weights.available(shipped) or weights.files(shipped)
    if shipped.weights.random is not None:
        assert "test" in shipped.note.lower()
    elif shipped.weights.hub is not None and len(str(shipped.weights.revision)) != 40:
        assert "pin" in shipped.note.lower()


def test_there_are_the_cards_that_pipelines_name() -> None:
    names = {path.stem for path in CARDS}
    assert names >= {
        *("clip-vit-b-32", "clip-vit-l-14", "grounding-dino-tiny", "grounding-dino-base", "mm-grounding-dino-tiny"),
        *("clip-random", "grounding-dino-random", "mm-grounding-dino-random"),
    }
    cards = [load_card(path) for path in CARDS]
    digests = [card.digest() for card in cards if not waits_for_a_file(card)]
    assert len(set(digests)) == len(digests)


def test_planning_imports_no_model_library() -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from labelmill.operators.models import load_card\n"
        "from labelmill.operators.embed import Embed; from labelmill.operators.detect import Detect\n"
        "from labelmill.operators.classify import Classify\n"
        "folder = Path('conf/models')\n"
        "clip, dino = load_card(folder / 'clip-vit-l-14.yaml'), load_card(folder / 'grounding-dino-tiny.yaml')\n"
        "embed = Embed(Embed.Params(model=clip)); embed.check({}); embed.digest(); embed.needs()\n"
        "detect = Detect(Detect.Params(model=dino, ontology=['car'])); detect.check({}); detect.digest()\n"
        "classify = Classify(Classify.Params(model=clip, ontology=['car'])); classify.digest()\n"
        "classify.check({'embedding': embed.writes().field('embedding').type})\n"
        "assert embed.writes().field('embedding').type.list_size == 768\n"
        "assert detect.writes() and classify.writes()\n"
        "heavy = {'torch', 'transformers', 'open_clip', 'torchvision', 'huggingface_hub'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"weights": {}},
            "weights: must have exactly one of hub, url, path, package, random and endpoint but has none",
        ),
        ({"weights": {"random": 1, "path": "x"}}, "weights: must have exactly one of"),
        ({"weights": {"hub": "a/b", "file": "x"}}, "weights: with hub must name a revision and a file"),
        ({"weights": {"package": "a"}}, "weights: with package must name a file in it"),
        ({"weights": {"hub": "no-slash", "revision": "main", "file": "x"}}, "weights.hub: .* found 'no-slash'"),
        ({"weights": {"url": "https://x/y.safetensors"}}, "weights: with url must give the sha256"),
        ({"weights": {"random": 1, "sha256": "0" * 64}}, "weights: random weights have no sha256"),
        ({"weights": {"random": 1, "extra_files": ["x"]}}, "weights: extra_files belong to"),
        ({"weights": {"endpoint": "http://x/v1"}}, "engine openai and weights.endpoint go together"),
        ({"engine": "openai"}, "engine openai and weights.endpoint go together"),
        ({"weights": {"endpoint": "localhost:8000"}}, "weights.endpoint: must be an http or https address"),
        ({"weights": {"endpoint": "http://x/v1", "sha256": "0" * 64}}, "weights: endpoint weights have no sha256"),
        ({"weights": {"random": 1, "api_key_env": "KEY"}}, "weights: api_key_env belongs to endpoint, not to random"),
        ({"weights": {"path": "x", "sha256": "ABC"}}, "weights.sha256: .* found 'ABC'"),
        ({"weights": {"path": "x", "revision": "main"}}, "weights: revision and file belong to hub, not to path"),
        ({"weights": {"random": -1}}, "weights.random: .* found -1"),
        ({"weights": "x.safetensors"}, "weights: .* found 'x.safetensors'"),
        ({"weight": {"random": 1}}, "weight: Extra inputs are not permitted"),
        ({"memory_gb": 0}, "memory_gb: .* found 0"),
        ({"dtype": "int8"}, "dtype: .* found 'int8'"),
        ({"engine": None}, "engine: .* found None"),
    ],
)
def test_bad_card_names_file_and_key(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = write_card(tmp_path / "bad.yaml", **changes)
    with pytest.raises(ModelError, match=message) as error:
        load_card(path)
    assert str(path) in error.value.message
    assert error.value.param == ("model",)


@pytest.mark.parametrize(
    ("endpoint", "variable"),
    [("https://x/v1", "sk-hunter2"), ("https://me:hunter2@x/v1", "KEY"), ("https://x/v1?key=hunter2", "KEY")],
)
def test_a_secret_in_a_card_is_refused_and_not_shown(tmp_path: Path, endpoint: str, variable: str) -> None:
    given = {"endpoint": endpoint, "api_key_env": variable}
    with pytest.raises(ModelError, match=r"weights\.(endpoint|api_key_env): must be") as error:
        load_card(write_card(tmp_path / "bad.yaml", engine="openai", weights=given))
    assert "hunter2" not in str(error.value)


@pytest.mark.parametrize("text", ["a: [", "- 1\n- 2\n", "", "just words", "\x00"])
def test_file_that_is_no_card(tmp_path: Path, text: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ModelError, match=r"bad\.yaml"):
        load_card(path)


def test_card_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"none\.yaml cannot be read"):
        load_card(tmp_path / "none.yaml")


def test_path_is_relative_to_the_card(tmp_path: Path, tensors: Path) -> None:
    (tmp_path / "cards").mkdir()
    path = write_card(tmp_path / "cards" / "one.yaml", weights={"path": "../weights.safetensors"})
    loaded = load_card(path)
    assert loaded.name == "one"
    assert weights.files(loaded) == [tensors]


def test_path_inside_the_checkout_stays_relative_to_it() -> None:
    inside = load_card(CARDS[0]).model_dump(exclude_none=True)
    folder = ROOT / "conf" / "models"
    given = card({"path": "conf/models/clip-random.yaml"})
    assert weights.files(given) == [folder / "clip-random.yaml"]
    assert str(ROOT) not in str(inside)


# ---------------------------------------------------------------- digest


@pytest.mark.parametrize(
    "changes",
    [
        {"engine": "other"},
        {"architecture": "ViT-L-14"},
        {"weights": {"random": 2}},
        {"config": {"embed_dim": 3}},
        {"preprocess": {"size": 3}},
        {"dtype": "float16"},
    ],
)
def test_digest_changes_with_what_changes_results(changes: dict[str, Any]) -> None:
    given = {"weights": {"random": 1}, **changes}
    assert card(given.pop("weights"), **given).digest() != card({"random": 1}).digest()


def test_digest_stays_with_what_does_not() -> None:
    same = card({"random": 1}, name="other", licence="GPL-3.0", memory_gb=9, note="Hello.", task="detection")
    assert same.digest() == card({"random": 1}).digest()


def test_digest_of_a_path_is_its_contents(tmp_path: Path, tensors: Path) -> None:
    copy = tmp_path / "elsewhere.safetensors"
    copy.write_bytes(tensors.read_bytes())
    first = card({"path": str(tensors)}).digest()
    assert card({"path": str(copy)}).digest() == first
    assert card({"path": str(copy), "sha256": sha256(copy)}).digest() == first
    assert card({"url": "https://x/y", "sha256": sha256(copy)}).digest() == first

    status = copy.stat()
    changed = bytearray(copy.read_bytes())
    changed[-1] ^= 1
    copy.write_bytes(changed)
    os.utime(copy, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert card({"path": str(copy)}).digest() != first


def test_digest_covers_extra_files(tmp_path: Path, tensors: Path) -> None:
    extra = tmp_path / "config.json"
    digests = set()
    for text in ("{}", "{ }", None):
        given: dict[str, Any] = {"path": str(tensors)}
        if text is not None:
            extra.write_text(text)
            given["extra_files"] = ["config.json"]
        digests.add(card(given).digest())
    assert len(digests) == 3


def test_digest_of_a_hub_file_is_its_revision_and_needs_no_file() -> None:
    hub = {"hub": "a/b", "revision": "main", "file": "x.safetensors"}
    digests = {card(given).digest() for given in (hub, {**hub, "revision": "v2"}, {**hub, "file": "y"}, hub)}
    assert len(digests) == 3


def test_digest_of_an_endpoint_is_its_address_and_the_models_name() -> None:
    def digest(address: str, name: str = "a", **more: str) -> str:
        return card({"endpoint": address, **more}, engine="openai", architecture=name).digest()

    first = digest("http://x/v1")
    assert digest("http://x/v1/", api_key_env="KEY") == first
    assert len({first, digest("http://y/v1"), digest("http://x/v1", "b")}) == 3


def test_digest_of_a_missing_path(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"weights of card small must be at .*none\.safetensors"):
        card({"path": str(tmp_path / "none.safetensors")}).digest()


# ---------------------------------------------------------------- reading


def test_reads_safetensors_and_torch_files(tmp_path: Path, tensors: Path) -> None:
    torch.save({"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4)}, tmp_path / "weights.pt")
    for path in (tensors, tmp_path / "weights.pt"):
        state = weights.read(card({"path": str(path), "sha256": sha256(path)}))
        assert sorted(state) == ["a", "b"]
        assert torch.equal(state["a"], torch.arange(6.0).reshape(2, 3))


@pytest.mark.parametrize("keep", [0, 4, 60, -3])
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_corrupt_weights(tmp_path: Path, tensors: Path, keep: int, suffix: str) -> None:
    whole = tmp_path / f"whole{suffix}"
    if suffix == ".pt":
        torch.save({"a": torch.ones(3)}, whole)
    else:
        whole.write_bytes(tensors.read_bytes())
    broken = tmp_path / f"broken{suffix}"
    broken.write_bytes(whole.read_bytes()[:keep])
    with pytest.raises(ModelError, match="weights of card small cannot be read from"):
        weights.read(card({"path": str(broken)}))


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, ("ran",))


def test_a_pickle_in_weights_is_not_run(tmp_path: Path) -> None:
    path = tmp_path / "evil.pt"
    torch.save({"a": Evil()}, path)
    plain = tmp_path / "plain.bin"
    plain.write_bytes(pickle.dumps({"a": Evil()}))
    for file in (path, plain):
        with pytest.raises(ModelError, match="cannot be read"):
            weights.read(card({"path": str(file)}))
    assert not Path("ran").exists()


def test_weights_that_are_no_tensors(tmp_path: Path) -> None:
    path = tmp_path / "other.pt"
    torch.save({"epoch": 3}, path)
    with pytest.raises(ModelError, match="must be a mapping of names to tensors"):
        weights.read(card({"path": str(path)}))


def test_wrong_sha256_names_both(tensors: Path) -> None:
    given = card({"path": str(tensors), "sha256": "0" * 64})
    with pytest.raises(ModelError, match=rf"must have sha256 {'0' * 64} but .* has {sha256(tensors)}"):
        weights.read(given)


def test_fit_names_what_differs(tensors: Path) -> None:
    given = card({"path": str(tensors)})
    model = torch.nn.Linear(3, 2)
    with pytest.raises(ModelError) as error:
        weights.fit(given, model, {"weight": torch.zeros(3, 3), "extra": torch.zeros(1)})
    assert "1 missing (bias)" in str(error.value)
    assert "1 unexpected (extra)" in str(error.value)
    assert "weight must be (2, 3) but is (3, 3)" in str(error.value)
    weights.fit(given, model, {"weight": torch.ones(2, 3, dtype=torch.float16), "bias": torch.ones(2)})
    assert model.weight.dtype == torch.float32
    assert bool((model.weight == 1).all())


def test_random_weights_have_no_files() -> None:
    given = card({"random": 3})
    assert weights.files(given) == []
    assert weights.available(given)
    assert weights.pull(given) == []


def test_an_endpoint_has_no_files() -> None:
    given = card({"endpoint": "http://x/v1"}, engine="openai")
    assert weights.files(given) == weights.pull(given) == []
    assert weights.available(given)
    weights.verify(given)


# ---------------------------------------------------------------- fetching


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_pull_from_a_url(tensors: Path, cache: Path) -> None:
    with Serve(partial(QuietFiles, directory=str(tensors.parent))) as address:
        given = card({"url": f"{address}/weights.safetensors?download=true", "sha256": sha256(tensors)})
        assert not weights.available(given)
        with pytest.raises(ModelError, match=r"are not here .* run `labelmill models pull small`"):
            weights.read(given)
        assert not cache.exists()

        told: list[tuple[str, int, int | None]] = []
        paths = weights.pull(given, lambda *state: told.append(state))
        size = tensors.stat().st_size
        assert told[-1] == ("weights.safetensors", size, size)
    assert weights.available(given)
    assert paths == weights.files(given)
    assert sorted(weights.read(given)) == ["a", "b"]
    assert weights.pull(given) == paths  # the server is gone: nothing is fetched twice
    assert [path.name for path in paths[0].parent.iterdir()] == ["weights.safetensors"]


def test_pull_of_another_file_keeps_nothing(tensors: Path, cache: Path) -> None:
    given = card({"url": tensors.as_uri(), "sha256": "1" * 64})
    with pytest.raises(ModelError, match=rf"must have sha256 {'1' * 64} but .* gave {sha256(tensors)}"):
        weights.pull(given)
    assert [path for path in cache.rglob("*") if path.is_file()] == []
    assert not weights.available(given)


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/x.safetensors", "file:///nowhere/x.safetensors", "odd://x/y"])
def test_pull_from_nowhere(url: str, cache: Path) -> None:
    with pytest.raises(ModelError, match="weights of card small cannot be fetched: "):
        weights.pull(card({"url": url, "sha256": "1" * 64}))
    assert [path for path in cache.rglob("*") if path.is_file()] == []


class QuietFiles(SimpleHTTPRequestHandler):
    def log_message(self, *args: Any) -> None:
        pass


class Hub(BaseHTTPRequestHandler):
    """As much of the Hugging Face hub as a download asks for."""

    commit = "c" * 40
    files: ClassVar[dict[str, bytes]] = {}

    def log_message(self, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        name = self.path.removeprefix("/org/repo/resolve/v1/")
        data = self.files.get(name)
        self.send_response(200 if data is not None else 404)
        self.send_header("X-Repo-Commit", self.commit)
        if data is None:
            self.send_header("X-Error-Code", "EntryNotFound")
        else:
            self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        self.send_header("Content-Length", str(len(data or b"")))
        self.end_headers()
        if body and data:
            self.wfile.write(data)


@pytest.fixture
def hub(tensors: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    from huggingface_hub import constants

    monkeypatch.setattr(Hub, "files", {"sub/model.safetensors": tensors.read_bytes(), "sub/config.json": b"{}"})
    with Serve(Hub) as address:
        monkeypatch.setattr(constants, "ENDPOINT", address)
        template = address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        yield Hub


def test_pull_from_a_hub(hub: type[Hub], tensors: Path) -> None:
    origin = {"hub": "org/repo", "revision": "v1", "file": "sub/model.safetensors", "extra_files": ["sub/config.json"]}
    given = card({**origin, "sha256": sha256(tensors)})
    with pytest.raises(ModelError, match=r"not here \(sub/model.safetensors, sub/config.json\); run `labelmill"):
        weights.files(given)
    told: list[tuple[str, int, int | None]] = []
    before = given.digest()
    model, config = weights.pull(given, lambda *state: told.append(state))
    assert given.digest() == before
    assert model.read_bytes() == tensors.read_bytes()
    assert config.read_text() == "{}"
    assert model.parent == config.parent
    assert ("sub/model.safetensors", tensors.stat().st_size, tensors.stat().st_size) in told
    assert sorted(weights.read(given)) == ["a", "b"]

    hub.files = {}  # the hub has nothing any more, and is not asked
    assert weights.pull(given) == [model, config]
    with pytest.raises(ModelError, match=rf"must have sha256 {'2' * 64} but .* has {sha256(tensors)}"):
        weights.pull(card({**origin, "sha256": "2" * 64}))


def test_pull_of_a_file_that_the_hub_has_not(hub: type[Hub]) -> None:
    with pytest.raises(ModelError, match=r"weights of card small cannot be fetched: .*404"):
        weights.pull(card({"hub": "org/repo", "revision": "v1", "file": "none.safetensors"}))


# ---------------------------------------------------------------- device


def test_arithmetic_by_step_then_card_then_device() -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    plain, half = card({"random": 0}), card({"random": 0}, dtype="bfloat16")
    assert pick_dtype("auto", plain, cpu) == torch.float32
    assert pick_dtype("auto", plain, gpu) == torch.float16
    assert pick_dtype("auto", half, cpu) == torch.bfloat16
    assert pick_dtype("float32", half, gpu) == torch.float32


def test_seeded_draws_leave_the_generators_as_they_were() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    state = np.random.get_state()[1].copy()  # type: ignore[index,union-attr]
    with seeded(1):
        first = torch.rand(3)
    with seeded(1):
        assert torch.equal(torch.rand(3), first)
    assert torch.equal(torch.rand(3), expected)
    assert (np.random.get_state()[1] == state).all()  # type: ignore[index]


def test_inference_keeps_no_gradients_and_restores_the_mode() -> None:
    layer, x = torch.nn.Linear(2, 2), torch.ones(1, 2)
    with inference(torch.device("cpu"), torch.bfloat16):
        half = layer(x)
    assert half.dtype == torch.bfloat16
    assert not half.requires_grad
    with inference(torch.device("cpu"), torch.float32):
        assert layer(x).dtype == torch.float32
    assert layer(x).requires_grad
