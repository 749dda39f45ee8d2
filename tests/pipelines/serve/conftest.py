from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from labelmill.operators.miniatures.write import write_world
from tests.pipelines.serve.serving import CARDS, client


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """Files of twelve drawn scenes, all of one size."""
    folder = tmp_path_factory.mktemp("world")
    write_world(folder, 12, 5, size=200, duplicates=0, bad=0)
    return [path.read_bytes() for path in sorted((folder / "images").rglob("*")) if path.is_file()]


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """A server with the miniatures."""
    import torch

    torch.set_num_threads(1)
    with client(cards=CARDS, max_images=16, max_body=4 << 20, max_pixels=2_000_000) as made:
        yield made


@pytest.fixture
def world_file(tmp_path: Path, scenes: list[bytes]) -> Path:
    path = tmp_path / "scene"
    path.write_bytes(scenes[0])
    return path
