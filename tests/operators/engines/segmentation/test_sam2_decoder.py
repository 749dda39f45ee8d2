"""The mask decoder that takes the place of SAM 2's and 3's, against transformers' own with the same weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from labelmill.operators.engines.segmentation import transformers as engine
from labelmill.operators.engines.segmentation.sam2_decoder import MaskDecoder
from labelmill.operators.models import ModelCard
from tests.operators.engines.segmentation.tiny_sams import SAM2_CARD, SAM3_CARD


@pytest.fixture(params=[SAM2_CARD, SAM3_CARD], ids=lambda card: card.architecture)
def decoder(request: pytest.FixtureRequest) -> Any:
    card: ModelCard = request.param
    own = engine.build(card).mask_decoder
    generator = torch.Generator().manual_seed(0)
    for parameter in own.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
    return own


def given(own: Any, prompts: int, tokens: int, several: bool) -> dict[str, Any]:
    """An image of 4 x 6 cells: rows and columns must not be taken for each other."""
    width, generator = own.hidden_size, torch.Generator().manual_seed(1)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    return {
        "image_embeddings": draw(1, width, 4, 6),
        "image_positional_embeddings": draw(1, width, 4, 6),
        "sparse_prompt_embeddings": draw(1, prompts, tokens, width),
        "dense_prompt_embeddings": draw(1, width, 1, 1).expand(-1, -1, 4, 6),
        "multimask_output": several,
        "high_resolution_features": [draw(1, width // 8, 16, 24), draw(1, width // 4, 8, 12)],
    }


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize(("prompts", "tokens"), [(1, 3), (5, 2)])
def test_masks_are_the_models(decoder: Any, prompts: int, tokens: int, several: bool) -> None:
    asked = given(decoder, prompts, tokens, several)
    with torch.inference_mode():
        logits, predicted, *_ = decoder(**asked)
        mine, promised = MaskDecoder(decoder)(**asked)
    assert mine.shape == (1, prompts, 3 if several else 1, 16, 24)
    assert logits.std() > 0.1
    torch.testing.assert_close(mine, logits, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(promised, predicted, atol=1e-5, rtol=1e-5)


def test_the_single_mask_is_taken_where_nothing_replaces_it(decoder: Any) -> None:
    decoder.dynamic_multimask_via_stability = False
    asked = given(decoder, 3, 3, False)
    with torch.inference_mode():
        logits, predicted, *_ = decoder(**asked)
        mine, promised = MaskDecoder(decoder)(**asked)
    torch.testing.assert_close(mine, logits, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(promised, predicted, atol=1e-5, rtol=1e-5)


def test_it_is_used_in_full_precision_only() -> None:
    exact, half = (engine.TransformersSam(SAM2_CARD, dtype)._model.mask_decoder for dtype in ("float32", "bfloat16"))
    assert isinstance(exact, MaskDecoder)
    assert not isinstance(half, MaskDecoder)
