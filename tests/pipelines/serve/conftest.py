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


@pytest.fixture
def points_card(working_directory: Path) -> str:
    """The name of a card of a SAM with drawn weights that knows points, where this test's server finds it."""
    folder = working_directory / "conf" / "models"
    folder.mkdir(parents=True)
    (folder / "sam-points.yaml").write_text(
        "task: segmentation\nengine: segment_anything\narchitecture: Sam\nweights: {random: 3}\nlicence: none\n"
        "memory_gb: 0.1\nconfig: {image_size: 64, patch_size: 16, encoder_embed_dim: 32, encoder_depth: 1,"
        " encoder_num_heads: 2, encoder_global_attn_indexes: [], mlp_ratio: 2, window_size: 2, prompt_embed_dim: 32,"
        " num_multimask_outputs: 3, decoder_depth: 1, decoder_num_heads: 2, decoder_mlp_dim: 32,"
        " iou_head_hidden_dim: 16}\n"
    )
    return "sam-points"
