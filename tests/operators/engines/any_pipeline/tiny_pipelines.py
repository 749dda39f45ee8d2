"""Small random models in folders, as `save_pretrained` of transformers leaves them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

WORDS = ["a", "red", "blue", "cup", "dog", "sign", "stands", "on", "the", "table", "this", "is", "photo", "of", "."]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LABELS = {0: "cat", 1: "dog", 2: "traffic light"}
NAMES = {"id2label": LABELS, "label2id": {name: number for number, name in LABELS.items()}}
SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
}


def image_processor(kind: str = "ViTImageProcessor", size: Any = None, **changes: Any) -> Any:
    return getattr(transformers, kind)(size=size or {"height": 32, "width": 32}, **changes)


def tokenizer() -> Any:
    ids = {token: number for number, token in enumerate([*SPECIAL, *WORDS])}
    made = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", ids["[CLS]"]), ("[SEP]", ids["[SEP]"])],
    )
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), SPECIAL, strict=True))
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, model_max_length=24, **names)


def save(folder: Path, model: Any, *parts: Any) -> Path:
    """Weights are drawn again, larger than transformers draws them: answers shall differ between inputs."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    for part in (model, *parts):
        part.save_pretrained(folder)
    return folder


def vit(folder: Path, **changes: Any) -> Path:
    config = transformers.ViTConfig(**SIZES, image_size=32, patch_size=8, **NAMES, **changes)
    return save(folder, transformers.ViTForImageClassification(config), image_processor())


def features(folder: Path) -> Path:
    config = transformers.ViTConfig(**SIZES, image_size=32, patch_size=8)
    return save(folder, transformers.ViTModel(config), image_processor())


def yolos(folder: Path) -> Path:
    config = transformers.YolosConfig(
        **SIZES, image_size=[64, 64], patch_size=16, num_detection_tokens=6, use_mid_position_embeddings=False, **NAMES
    )
    processor = image_processor("YolosImageProcessor", {"shortest_edge": 48, "longest_edge": 64})
    return save(folder, transformers.YolosForObjectDetection(config), processor)


def segformer(folder: Path) -> Path:
    config = transformers.SegformerConfig(
        hidden_sizes=[8, 16, 24, 32],
        depths=[1, 1, 1, 1],
        num_attention_heads=[1, 1, 2, 2],
        decoder_hidden_size=16,
        **NAMES,
    )
    processor = image_processor("SegformerImageProcessor")
    return save(folder, transformers.SegformerForSemanticSegmentation(config), processor)


def depth(folder: Path) -> Path:
    config = transformers.GLPNConfig(
        hidden_sizes=[8, 16, 24, 32],
        depths=[1, 1, 1, 1],
        num_attention_heads=[1, 1, 2, 2],
        decoder_hidden_size=16,
    )
    return save(folder, transformers.GLPNForDepthEstimation(config), transformers.GLPNImageProcessor())


def clip(folder: Path) -> Path:
    text = {**SIZES, "vocab_size": len(SPECIAL) + len(WORDS), "max_position_embeddings": 24, "eos_token_id": 3}
    vision = {**SIZES, "image_size": 32, "patch_size": 8}
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)
    processor = image_processor("CLIPImageProcessor", {"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    return save(folder, transformers.CLIPModel(config), processor, tokenizer())


def bert(folder: Path, head: str, **changes: Any) -> Path:
    config = transformers.BertConfig(
        **SIZES, vocab_size=len(SPECIAL) + len(WORDS), max_position_embeddings=24, **{**NAMES, **changes}
    )
    return save(folder, getattr(transformers, head)(config), tokenizer())


def gpt2(folder: Path) -> Path:
    config = transformers.GPT2Config(
        n_embd=32, n_layer=2, n_head=2, n_positions=64, vocab_size=len(SPECIAL) + len(WORDS), eos_token_id=3
    )
    return save(folder, transformers.GPT2LMHeadModel(config), tokenizer())


def sam(folder: Path) -> Path:
    config = transformers.SamConfig(
        vision_config={
            "hidden_size": 16,
            "output_channels": 16,
            "num_pos_feats": 8,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "mlp_dim": 32,
            "image_size": 64,
            "patch_size": 16,
            "global_attn_indexes": [0],
        },
        prompt_encoder_config={"hidden_size": 16, "image_size": 64, "patch_size": 16, "mask_input_channels": 8},
        mask_decoder_config={
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "mlp_dim": 32,
            "iou_head_hidden_dim": 16,
        },
    )
    parts = {"size": {"longest_edge": 64}, "pad_size": {"height": 64, "width": 64}}
    return save(folder, transformers.SamModel(config), transformers.SamImageProcessor(**parts))
