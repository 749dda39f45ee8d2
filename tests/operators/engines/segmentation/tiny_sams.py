"""Tiny Segment Anything models with drawn weights, images and boxes to try them on, and SAM's two sets of names."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import torch
from pycocotools import mask as coco_mask

from labelmill.operators.columns.schemas import DETECTIONS
from labelmill.operators.errors import RowError
from labelmill.operators.images.decoded import DecodedImage
from labelmill.operators.models import ModelCard
from labelmill.operators.segment import Segment

SIZES = [(96, 96), (200, 90), (70, 311), (33, 21), (640, 480)]  # width, height

CONFIG: dict[str, Any] = {
    "image_size": 96,
    "patch_size": 8,
    "encoder_embed_dim": 24,
    "encoder_depth": 2,
    "encoder_num_heads": 2,
    "encoder_global_attn_indexes": [1],
    "window_size": 5,
    "prompt_embed_dim": 32,
    "decoder_num_heads": 4,
    "decoder_mlp_dim": 48,
    "iou_head_hidden_dim": 16,
}
"""For segment-anything."""

SAM: dict[str, Any] = {
    "vision_config": {
        "hidden_size": 24,
        "output_channels": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 96,
        "patch_size": 8,
        "window_size": 5,
        "global_attn_indexes": [1],
        "num_pos_feats": 16,
        "initializer_range": 0.2,
    },
    "prompt_encoder_config": {"hidden_size": 32, "image_size": 96, "patch_size": 8},
    "mask_decoder_config": {"hidden_size": 32, "num_attention_heads": 4, "mlp_dim": 48, "iou_head_hidden_dim": 16},
    "initializer_range": 0.2,
}
"""The same sizes for transformers."""

_PROMPTS = {"prompt_encoder_config": {"hidden_size": 32, "image_size": 64, "patch_size": 16}}
_DECODER = {"hidden_size": 32, "num_attention_heads": 4, "mlp_dim": 48, "iou_head_hidden_dim": 16}

SAM2: dict[str, Any] = {
    "vision_config": {
        "backbone_config": {
            "model_type": "sam2_hiera_det_model",
            "hidden_size": 8,
            "image_size": [64, 64],
            "blocks_per_stage": [1, 1, 2, 1],
            "embed_dim_per_stage": [8, 16, 32, 64],
            "num_attention_heads_per_stage": [1, 2, 2, 4],
            "window_size_per_stage": [4, 2, 2, 2],
            "global_attention_blocks": [3],
            "window_positional_embedding_background_size": [4, 4],
            "initializer_range": 0.2,
        },
        "backbone_channel_list": [64, 32, 16, 8],
        "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]],
        "fpn_hidden_size": 32,
        "initializer_range": 0.2,
    },
    **_PROMPTS,
    "mask_decoder_config": _DECODER,
    "initializer_range": 0.2,
}

SAM3: dict[str, Any] = {
    "vision_config": {
        "model_type": "sam3_vision_model",
        "backbone_config": {
            "model_type": "sam3_vit_model",
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 64,
            "patch_size": 16,
            "pretrain_image_size": 32,
            "window_size": 2,
            "global_attn_indexes": [1],
            "initializer_range": 0.2,
        },
        "fpn_hidden_size": 32,
        "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]],
        "initializer_range": 0.2,
    },
    **_PROMPTS,
    "mask_decoder_config": _DECODER,
    "initializer_range": 0.2,
}


def card(config: dict[str, Any], engine: str, architecture: str, seed: int = 3) -> ModelCard:
    return ModelCard.model_validate(
        {
            "name": "small",
            "task": "segmentation",
            "engine": engine,
            "architecture": architecture,
            "weights": {"random": seed},
            "config": config,
            "licence": "Apache-2.0",
            "memory_gb": 0.5,
        }
    )


ORIGINAL_CARD = card(CONFIG, "segment_anything", "Sam")
SAM_CARD = card({"model": SAM}, "transformers", "SamModel")
SAM2_CARD = card({"model": SAM2}, "transformers", "Sam2Model")
SAM3_CARD = card({"model": SAM3}, "transformers", "Sam3TrackerModel")
ALL_CARDS = [ORIGINAL_CARD, SAM_CARD, SAM2_CARD, SAM3_CARD]


def with_weights(card: ModelCard, path: Any) -> ModelCard:
    return card.model_copy(update={"weights": card.weights.model_validate({"path": str(path)})})


def detections(width: int, height: int, count: int, seed: int = 0) -> list[dict[str, Any]]:
    rng = np.random.default_rng([seed, count])
    low = rng.uniform(0, 0.6, (count, 2)) * [width, height]
    high = low + rng.uniform(0.1, 0.4, (count, 2)) * [width, height]
    return [
        {
            **dict(zip(("x1", "y1", "x2", "y2"), box, strict=True)),
            "class": f"class {number}",
            "score": number / 8,
            "prompt": "a thing",
            "mask": None,
        }
        for number, box in enumerate(np.concatenate([low, high], axis=1).astype(np.float32).tolist())
    ]


def boxes(found: list[dict[str, Any]]) -> np.ndarray:
    """float32 (n, 4)"""
    return np.array([[each[side] for side in ("x1", "y1", "x2", "y2")] for each in found], np.float32).reshape(-1, 4)


def segment(card: ModelCard = ORIGINAL_CARD, **params: Any) -> Segment:
    operator = Segment(Segment.Params(model=card, **params))
    operator.check({} if params.get("everything") else {"detections": DETECTIONS})
    operator.load()
    return operator


def run(operator: Segment, image: DecodedImage, found: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    (row,) = operator.infer([operator.prepare(image, {"detections": found})])
    assert not isinstance(row, RowError), row
    return row


def masks_of(row: dict[str, Any], image: DecodedImage) -> np.ndarray:
    """bool (n, height, width)."""
    size = (image.height, image.width)
    masks = [coco_mask.decode({"size": list(size), "counts": each["mask"]}) > 0 for each in row["detections"]]
    return np.array(masks, dtype=bool).reshape(-1, *size)


def overlap(one: np.ndarray, other: np.ndarray) -> float:
    return float((one & other).sum() / max(1, (one | other).sum()))


_NAMES = [
    (r"^image_encoder\.patch_embed\.proj", "vision_encoder.patch_embed.projection"),
    (r"^image_encoder\.blocks\.(\d+)\.norm", r"vision_encoder.layers.\1.layer_norm"),
    (r"^image_encoder\.blocks\.", "vision_encoder.layers."),
    (r"^image_encoder\.neck\.0", "vision_encoder.neck.conv1"),
    (r"^image_encoder\.neck\.1", "vision_encoder.neck.layer_norm1"),
    (r"^image_encoder\.neck\.2", "vision_encoder.neck.conv2"),
    (r"^image_encoder\.neck\.3", "vision_encoder.neck.layer_norm2"),
    (r"^image_encoder\.", "vision_encoder."),
    (r"^prompt_encoder\.pe_layer\.positional_encoding_gaussian_matrix", "shared_image_embedding.positional_embedding"),
    (r"^prompt_encoder\.point_embeddings\.", "prompt_encoder.point_embed."),
    (r"^prompt_encoder\.mask_downscaling\.0", "prompt_encoder.mask_embed.conv1"),
    (r"^prompt_encoder\.mask_downscaling\.1", "prompt_encoder.mask_embed.layer_norm1"),
    (r"^prompt_encoder\.mask_downscaling\.3", "prompt_encoder.mask_embed.conv2"),
    (r"^prompt_encoder\.mask_downscaling\.4", "prompt_encoder.mask_embed.layer_norm2"),
    (r"^prompt_encoder\.mask_downscaling\.6", "prompt_encoder.mask_embed.conv3"),
    (r"^mask_decoder\.output_upscaling\.0", "mask_decoder.upscale_conv1"),
    (r"^mask_decoder\.output_upscaling\.1", "mask_decoder.upscale_layer_norm"),
    (r"^mask_decoder\.output_upscaling\.3", "mask_decoder.upscale_conv2"),
    (r"^mask_decoder\.transformer\.norm_final_attn", "mask_decoder.transformer.layer_norm_final_attn"),
    (r"^(mask_decoder\.transformer\.layers\.\d+)\.norm", r"\1.layer_norm"),
    (r"(output_hypernetworks_mlps\.\d+|iou_prediction_head)\.layers\.0\.", r"\1.proj_in."),
    (r"(output_hypernetworks_mlps\.\d+|iou_prediction_head)\.layers\.2\.", r"\1.proj_out."),
    (r"(output_hypernetworks_mlps\.\d+|iou_prediction_head)\.layers\.1\.", r"\1.layers.0."),
]
"""segment-anything's name of a tensor and transformers', for heads of three layers."""


def renamed(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """segment-anything's weights under transformers' names."""
    found = {}
    for name, tensor in state.items():
        new = next((re.sub(old, new, name) for old, new in _NAMES if re.search(old, name)), name)
        found[new] = tensor.clone()
    return found


def stirred(model: torch.nn.Module) -> torch.nn.Module:
    """Away from where training starts: positions matter, and masks are small, several, of steep logits.

    One channel of the upscaled embedding is made constant, and every prompt's weight for it negative.
    """
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            noise = torch.randn(tensor.shape, generator=generator)
            if re.search(r"rel_pos|pos_embed|no_memory", name):
                tensor.copy_(0.1 * noise)
            elif re.search(r"hypernetworks_mlps\.\d+\.(layers\.2|proj_out)\.", name):
                tensor.copy_(16 * noise)
                tensor[0] = 0 if name.endswith("weight") else -0.3
            elif re.search(r"output_upscaling|upscale_conv", name):
                tensor.add_(0.4 * noise)
                if re.search(r"output_upscaling\.3|upscale_conv2", name):
                    if name.endswith("bias"):
                        tensor[0] = 10
                    else:
                        tensor[:, 0] = 0
            elif re.search(r"iou_prediction_head\.(layers\.2|proj_out)\.", name):
                tensor.mul_(3) if name.endswith("weight") else tensor.add_(0.6)
            elif re.search(r"[qkv]_proj\.weight|out_proj\.weight", name):
                tensor.mul_(2)
    return model


def unnamed(row: dict[str, Any]) -> dict[str, Any]:
    """An image's columns without the card that made its masks."""
    return {**row, "detections": [{**each, "models": None} for each in row["detections"]]}
