"""Tiny detectors with drawn weights, and names to ask them for."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from labelmill.operators.detect import Detect
from labelmill.operators.engines.detection import grounding_dino_model as engine
from labelmill.operators.engines.detection.captions import Caption
from labelmill.operators.images.decoded import DecodedImage
from labelmill.operators.models import ModelCard, load_card
from labelmill.operators.models.card import ROOT

FOLDER = ROOT / "conf" / "models"
PLAIN, MM, OWLV2 = (
    load_card(FOLDER / f"{name}-random.yaml") for name in ("grounding-dino", "mm-grounding-dino", "owlv2")
)
ONTOLOGY = {"car": ["car", "Taxi"], "carton": "carton", "television": "T.V.", "fire": "fire", "hydrant": "fire hydrant"}
SIZES = [(320, 240), (240, 320), (160, 160), (500, 90), (97, 203), (640, 480)]  # width, height

THERE = importlib.util.find_spec("groundingdino") is not None
needs_original = pytest.mark.skipif(not THERE, reason="needs the extra groundingdino")


def detect(card: ModelCard = PLAIN, ontology: Any = ONTOLOGY, **params: Any) -> Detect:
    operator = Detect(Detect.Params(model=card, ontology=ontology, **params))
    operator.check({})
    operator.load()
    return operator


def answers(operator: Detect, images: list[DecodedImage]) -> tuple[np.ndarray, np.ndarray]:
    """Scores (images, answers × candidates, prompts), NaN where an answer does not ask, and boxes beside them."""
    items = [operator.prepare(image, {}).given for image in images]
    scores, boxes = [], []
    for answer in operator._engine.detect(items):
        spread = np.full((*answer.scores.shape[:2], len(operator._asked)), np.nan)
        spread[..., answer.prompts] = answer.scores
        scores.append(spread)
        boxes.append(answer.boxes)
    return np.concatenate(scores, axis=1), np.concatenate(boxes, axis=1)


def permuted(caption: Caption, order: np.ndarray) -> Caption:
    """The same phrases in another order."""
    ids, spans = [caption.ids[0]], []
    for column in order:
        start, end = caption.spans[column]
        spans.append((len(ids), len(ids) + end - start))
        ids += caption.ids[start : end + 1]
    return Caption((*ids, caption.ids[-1]), tuple(caption.phrases[column] for column in order), tuple(spans))


def saved(card: ModelCard, folder: Path, **changes: Any) -> ModelCard:
    """The random card's model as a folder that transformers wrote, and a card that knows no sizes of its own."""
    model = engine.build(card)
    model.save_pretrained(folder)
    engine.tokenizer(card).save_pretrained(folder)
    extra = ["config.json", "tokenizer.json", "tokenizer_config.json"]
    source = {"path": str(folder / "model.safetensors"), "extra_files": extra}
    return card.model_copy(update={"weights": card.weights.model_validate(source), "config": {}, **changes})


# ---------------------------------------------------------------- one Grounding DINO in two libraries

SWIN = {"embed_dim": 24, "depths": [1, 1, 2, 1], "num_heads": [1, 2, 4, 8], "window_size": 5}
BERT = {**PLAIN.config["model"]["text_config"]}
WIDE = PLAIN.model_copy(  # the authors' code writes 256 features into its position embeddings
    update={
        "config": {
            "tokenizer": "ascii",
            "model": {
                **PLAIN.config["model"],
                "d_model": 256,
                "encoder_attention_heads": 8,
                "decoder_attention_heads": 8,
                "encoder_ffn_dim": 64,
                "decoder_ffn_dim": 64,
            },
        }
    }
)
ORIGINAL = WIDE.model_copy(
    update={
        "name": "grounding-dino-original",
        "engine": "groundingdino",
        "architecture": "GroundingDINO_SwinT_OGC",
        "config": {
            "tokenizer": "ascii",
            "model": {"backbone": SWIN, "enc_layers": 2, "dec_layers": 2, "dim_feedforward": 64, "num_queries": 40},
            "bert": {name: value for name, value in BERT.items() if name != "model_type"},
        },
    }
)


def original(folder: Path, *, nested: bool = True) -> ModelCard:
    """`WIDE`'s weights as a checkpoint of the authors', and its card."""
    path = folder / "checkpoint.pth"
    if not path.exists():
        state = original_state(engine.build(WIDE).state_dict())
        state["bert.embeddings.position_ids"] = torch.arange(256)[None]
        state["label_enc.weight"] = torch.zeros(2001, 256)
        torch.save({"model": {f"module.{name}": tensor for name, tensor in state.items()}} if nested else state, path)
    return ORIGINAL.model_copy(update={"weights": ORIGINAL.weights.model_validate({"path": str(path)})})


_VISION = "model.backbone.conv_encoder.model"
_NAMES = [
    (r"backbone\.0\.patch_embed\.proj", rf"{_VISION}.swin.embeddings.patch_embeddings.projection"),
    (r"backbone\.0\.patch_embed\.norm", rf"{_VISION}.swin.embeddings.norm"),
    (r"backbone\.0\.norm(\d)", lambda found: f"{_VISION}.hidden_states_norms.stage{int(found[1]) + 1}"),
    (r"backbone\.0\.layers", rf"{_VISION}.swin.encoder.layers"),
    (r"(blocks\.\d+)\.norm1", r"\1.layernorm_before"),
    (r"(blocks\.\d+)\.norm2", r"\1.layernorm_after"),
    (r"attn\.relative_position_bias_table", "attention.relative_position_bias.relative_position_bias_table"),
    (r"(blocks\.\d+)\.attn\.proj", r"\1.attention.o_proj"),
    (r"(blocks\.\d+)\.attn\.qkv", r"\1.attention.{q_proj,k_proj,v_proj}"),
    (r"^input_proj", "model.input_proj_vision"),
    (r"^bert", "model.text_backbone"),
    (r"^feat_map", "model.text_projection"),
    (r"^transformer\.level_embed", "model.level_embed"),
    (r"^transformer\.tgt_embed", "model.query_position_embeddings"),
    (r"^transformer\.(enc_output|enc_output_norm)\b", r"model.\1"),
    (r"^transformer\.enc_out_bbox_embed", "model.encoder_output_bbox_embed"),
    (r"^transformer\.encoder\.layers\.(\d+)", r"model.encoder.layers.\1.deformable_layer"),
    (r"^transformer\.encoder\.text_layers\.(\d+)", r"model.encoder.layers.\1.text_enhancer_layer"),
    (r"^transformer\.encoder\.fusion_layers\.(\d+)", r"model.encoder.layers.\1.fusion_layer"),
    (r"^transformer\.decoder\.norm", "model.decoder.layer_norm"),
    (r"^transformer\.decoder\.ref_point_head", "model.decoder.reference_points_head"),
    (r"^transformer\.decoder", "model.decoder"),
    (r"gamma_v", "vision_param"),
    (r"gamma_l", "text_param"),
    (r"layer_norm_v\b", "layer_norm_vision"),
    (r"layer_norm_l\b", "layer_norm_text"),
    (r"(fusion_layer\.attn\.(?:values_|out_)?)v_proj", r"\1vision_proj"),
    (r"(fusion_layer\.attn\.(?:values_|out_)?)l_proj", r"\1text_proj"),
    (r"linear([12])", r"fc\1"),
    (r"text_enhancer_layer\.norm1", "text_enhancer_layer.layer_norm_before"),
    (r"text_enhancer_layer\.norm2", "text_enhancer_layer.layer_norm_after"),
    (r"deformable_layer\.norm1", "deformable_layer.self_attn_layer_norm"),
    (r"deformable_layer\.norm2", "deformable_layer.final_layer_norm"),
    (r"(decoder\.layers\.\d+)\.cross_attn", r"\1.encoder_attn"),
    (r"(decoder\.layers\.\d+)\.ca_text", r"\1.encoder_attn_text"),
    (r"(decoder\.layers\.\d+)\.catext_norm", r"\1.encoder_attn_text_layer_norm"),
    (r"(decoder\.layers\.\d+)\.norm1", r"\1.encoder_attn_layer_norm"),
    (r"(decoder\.layers\.\d+)\.norm2", r"\1.self_attn_layer_norm"),
    (r"(decoder\.layers\.\d+)\.norm3", r"\1.final_layer_norm"),
    (r"in_proj_(weight|bias)", r"{query,key,value}.\1"),
]
"""From the authors' names of tensors to transformers'; braces stand for several, one below the other."""


def renamed(name: str) -> list[str]:
    """transformers' names of what is one tensor in the authors' checkpoint."""
    for pattern, replacement in _NAMES:
        name = re.sub(pattern, replacement, name)
    if "{" not in name:
        return [name]
    before, parts, after = re.split(r"[{}]", name)
    return [before + part + after for part in parts.split(",")]


def original_state(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """transformers' tensors by the authors' names. Those that transformers has no use for are the model's own."""
    from labelmill.operators.engines.detection.groundingdino import build

    own = build(ORIGINAL, engine.tokenizer(ORIGINAL)).state_dict()
    unused = {name for name in own if name.startswith("bert.pooler") or name.endswith("relative_position_index")}
    return {
        name: tensor if name in unused else torch.cat([state[each] for each in renamed(name)])
        for name, tensor in own.items()
    }


CARDS = ["plain", "mm", pytest.param("original", marks=needs_original), "owlv2"]
"""Every engine and architecture, by the names of `card_of`; the first three are Grounding DINO."""


def card_of(name: str, folder: Path) -> ModelCard:
    """One of `CARDS`; the original's weights are written to the folder."""
    return original(folder) if name == "original" else {"plain": PLAIN, "mm": MM, "owlv2": OWLV2}[name]


# ---------------------------------------------------------------- names

ROOTS = [
    *("car", "cart", "carton", "card", "cardigan", "board", "cupboard", "cup", "cupcake", "cake", "pan", "pancake"),
    *("fire", "fireplace", "place", "hydrant", "tv", "stop", "sign", "top", "box", "mailbox", "mail", "bow", "weapon"),
    *("rain", "rainbow", "coat", "boat", "house", "housecoat", "dog", "hotdog", "hot", "air", "ball", "balloon"),
    *("football", "foot"),
]


def lvis_like(count: int, seed: int = 0) -> list[str]:
    """Names as LVIS and its users write them, in any order: with capitals, dots, slashes, dashes, underscores and
    parentheses, and very many of them part of another."""
    rng = np.random.default_rng(seed)
    pairs = [(one, other) for one in range(len(ROOTS)) for other in range(len(ROOTS)) if one != other]
    shapes = ("{} {}", "{}_{}", "{}-{}", "{}/{}", "{}.{}", "{}_({})", "{} ({})", "{} & {}.", "{}?{}", "{}'s {}")
    names = list(ROOTS)
    for index in rng.permutation(len(pairs))[: count - len(ROOTS)]:
        one, other = (ROOTS[root] for root in pairs[index])
        names.append(shapes[rng.integers(len(shapes))].format(one, other))
    styles = (str, str, str.title, str.upper, str.capitalize)
    return [styles[rng.integers(len(styles))](name) for name in rng.permutation(names).tolist()]


def unnamed(rows: list[Any]) -> list[list[dict[str, Any]]]:
    """Detections without the card that made them."""
    return [[{**found, "models": None} for found in row["detections"]] for row in rows]
