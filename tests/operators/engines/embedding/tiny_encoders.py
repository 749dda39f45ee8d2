"""Tiny SigLIP and DINOv3 models with drawn weights, in folders as transformers writes them: what a hub would hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from labelmill.operators.models import ModelCard

WIDTH = 32
LENGTH = 12
"""Tokens of the tiny text side."""

_SIDE = {"hidden_size": WIDTH, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
_COLOURS = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}


def siglip(folder: Path) -> ModelCard:
    """SigLIP 2 at a fixed size."""
    config = {
        "text_config": {**_SIDE, "vocab_size": _tokenizer(folder), "max_position_embeddings": LENGTH},
        "vision_config": {**_SIDE, "image_size": 48, "patch_size": 16},
    }
    return _card(folder, "SiglipModel", config, {"size": 48, **_COLOURS})


def naflex(folder: Path) -> ModelCard:
    """SigLIP 2 that keeps an image's aspect."""
    config = {
        "text_config": {**_SIDE, "vocab_size": _tokenizer(folder), "max_position_embeddings": LENGTH},
        "vision_config": {**_SIDE, "num_patches": 16, "patch_size": 8},
    }
    return _card(folder, "Siglip2Model", config, {"patches": 24, **_COLOURS})


def dinov3(folder: Path) -> ModelCard:
    """DINOv3 with registers."""
    config = {**_SIDE, "image_size": 48, "patch_size": 16, "num_register_tokens": 4}
    colours = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    return _card(folder, "DINOv3ViTModel", config, {"size": 64, **colours})


MODELS = {"SigLIP 2": siglip, "SigLIP 2 NaFlex": naflex, "DINOv3": dinov3}


def _card(folder: Path, architecture: str, config: dict[str, Any], preprocess: dict[str, Any]) -> ModelCard:
    import transformers

    from labelmill.operators.engines.embedding.transformers_model import ARCHITECTURES

    found = getattr(transformers, ARCHITECTURES[architecture])(**config)
    torch.manual_seed(0)
    model = getattr(transformers, architecture)(found)
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.add_(0.1 * torch.randn_like(tensor))  # as drawn, every image looks the same to the model
        if hasattr(model, "logit_bias"):
            model.logit_scale.fill_(2.0)
            model.logit_bias.fill_(-3.0)
    model.save_pretrained(folder)
    text = {"extra_files": ["tokenizer.json"]} if hasattr(model, "logit_bias") else {}
    return ModelCard.model_validate(
        {
            "name": architecture.lower(),
            "task": "embedding",
            "engine": "transformers",
            "architecture": architecture,
            "weights": {"path": str(folder / "model.safetensors"), **text},
            "config": {"model": config},
            "preprocess": preprocess,
            "licence": "Apache-2.0",
            "memory_gb": 0.1,
        }
    )


def _tokenizer(folder: Path) -> int:
    """Gemma's kind of tokenizer, as SigLIP 2 publishes it: it knows capitals and lowers nothing by itself.

    Returns:
        How many tokens it has.
    """
    import json

    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    tokens = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokens += [*"▁abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.,"]
    merges = [("c", "a"), ("ca", "r"), ("▁", "ca"), ("t", "a"), ("▁", "a"), ("C", "a"), ("Ca", "r")]
    tokens += ["".join(pair) for pair in merges]
    bpe = models.BPE(
        vocab={token: number for number, token in enumerate(tokens)},
        merges=merges,
        unk_token="<unk>",
        fuse_unk=True,
        byte_fallback=True,
    )
    tokenizer = Tokenizer(bpe)
    tokenizer.add_special_tokens(tokens[:5])
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.post_processor = processors.TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 1)])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "Siglip2Tokenizer", "add_bos_token": False, "add_eos_token": True}
    special = {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>", "unk_token": "<unk>"}
    settings |= {"padding_side": "right", "model_input_names": ["input_ids"], **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return len(tokens)
