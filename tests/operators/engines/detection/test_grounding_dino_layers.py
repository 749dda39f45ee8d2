"""The layers that take the place of Grounding DINO's, against transformers' own with the same weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import GroundingDinoConfig
from transformers.models.grounding_dino.modeling_grounding_dino import (
    GroundingDinoBiMultiHeadAttention,
    GroundingDinoMultiscaleDeformableAttention,
)

from labelmill.operators.engines.detection.grounding_dino_layers import Fusion, Sampling, simplify
from labelmill.operators.engines.detection.grounding_dino_model import build
from tests.operators.engines.detection.tiny_detectors import PLAIN

MAPS = [[(5, 7), (3, 4), (2, 2)], [(6, 1), (1, 3), (1, 1)]]


@pytest.fixture(autouse=True)
def _inference() -> Any:
    torch.manual_seed(0)
    with torch.inference_mode():
        yield


def config() -> GroundingDinoConfig:
    return GroundingDinoConfig(d_model=32, encoder_ffn_dim=128, encoder_attention_heads=4, num_feature_levels=3)


def drawn(layer: Any, scale: float) -> Any:
    for parameter in layer.parameters():
        parameter.data = scale * torch.randn_like(parameter)
    return layer.eval().requires_grad_(False)


# ---------------------------------------------------------------- fusion


@pytest.mark.parametrize("tokens", [1, 7, 90])
@pytest.mark.parametrize("padded", [False, True])
def test_fusion_is_the_models(tokens: int, padded: bool) -> None:
    own = drawn(GroundingDinoBiMultiHeadAttention(config()), 0.3)
    image, text = torch.randn(2, 50, 32), torch.randn(2, tokens, 32)
    of_image, of_text = torch.zeros(2, 50, dtype=torch.bool), torch.zeros(2, tokens, dtype=torch.bool)
    if padded:
        of_image[1, 30:] = True
        of_text[0, tokens // 2 + 1 :] = True
    (seen, _), (told, _) = own(image, text, of_image, of_text)
    (mine, _), (also, _) = Fusion(own)(image, text, of_image, of_text)
    assert seen.std() > 0.5
    torch.testing.assert_close(mine, seen, atol=2e-4, rtol=1e-5)
    torch.testing.assert_close(also, told, atol=2e-4, rtol=1e-5)


def test_fusion_without_masks_and_in_half_precision() -> None:
    own = drawn(GroundingDinoBiMultiHeadAttention(config()), 0.1)
    image, text = torch.randn(1, 50, 32), torch.randn(1, 7, 32)
    (full, _), (told, _) = own(image, text)
    with torch.autocast("cpu", torch.bfloat16):
        (mine, _), (also, _) = Fusion(own)(image, text)
        (theirs, _), (again, _) = own(image, text)
    assert (mine - full).abs().max() <= 2 * (theirs - full).abs().max()
    assert (also - told).abs().max() <= 2 * (again - told).abs().max()


# ---------------------------------------------------------------- sampling


def asked(shapes: list[tuple[int, int]], sides: int, queries: int = 40) -> dict[str, Any]:
    """Two images whose samples lie on the maps, at their borders and far beyond."""
    sizes = torch.tensor(shapes)
    cells = sizes.prod(1)
    return {
        "hidden_states": torch.randn(2, queries, 32),
        "attention_mask": torch.ones(2, int(cells.sum()), dtype=torch.bool),
        "encoder_hidden_states": torch.randn(2, int(cells.sum()), 32),
        "position_embeddings": torch.randn(2, queries, 32),
        "reference_points": torch.rand(2, queries, 3, sides) * 1.5 - 0.2,
        "spatial_shapes": sizes,
        "spatial_shapes_list": shapes,
        "level_start_index": torch.cat([torch.zeros(1, dtype=torch.int64), cells.cumsum(0)[:-1]]),
    }


@pytest.fixture
def own() -> Any:
    return drawn(GroundingDinoMultiscaleDeformableAttention(config(), num_heads=4, n_points=2), 0.3)


@pytest.mark.parametrize("shapes", MAPS)
@pytest.mark.parametrize("sides", [2, 4])
def test_sampling_is_the_models(own: Any, shapes: list[tuple[int, int]], sides: int) -> None:
    given = asked(shapes, sides)
    expected = own(**given)[0]
    assert expected.std() > 0.3
    torch.testing.assert_close(Sampling(own)(**given)[0], expected, atol=2e-5, rtol=1e-5)


def test_sampling_in_parts_with_padding(own: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    given = asked(MAPS[0], 2)
    given["attention_mask"][1, 20:] = False
    monkeypatch.setattr("labelmill.operators.engines.detection.grounding_dino_layers._QUERIES", 7)
    torch.testing.assert_close(Sampling(own)(**given)[0], own(**given)[0], atol=2e-5, rtol=1e-5)


def test_what_is_not_a_number_stays_so_and_spoils_nothing_else(own: Any) -> None:
    given = asked(MAPS[0], 2)
    given["hidden_states"][0, 3, 0] = torch.nan
    given["hidden_states"][1, 5, 0] = torch.inf
    expected = own(**given)[0]
    found = Sampling(own)(**given)[0]
    assert found[0, 3].isnan().all()
    assert torch.equal(found.isfinite(), expected.isfinite())
    good = expected.isfinite()
    torch.testing.assert_close(found[good], expected[good], atol=2e-5, rtol=1e-5)


# ---------------------------------------------------------------- a model


def test_every_layer_is_replaced() -> None:
    model = build(PLAIN)
    simplify(model, torch.device("cpu"))
    names = [type(module).__name__ for module in model.modules()]
    assert names.count("Fusion") == model.config.encoder_layers
    assert names.count("Sampling") == model.config.encoder_layers + model.config.decoder_layers
