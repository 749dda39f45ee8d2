"""Tiny vision-language models with drawn weights, in folders as transformers writes them: what a hub would hold."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from labelmill.operators.models import ModelCard

WORDS = ["a", "red", "green", "blue", "car", "cup", "is", "there", "the", "what", "colour", "yes", "no", "?", ".", ":"]
WORDS += ["User", "Assistant", "user", "assistant", "Describe", "image"]
ANSWER_ENDS = 1


def idefics3(folder: Path) -> ModelCard:
    """SmolVLM's class. Its chat ends in a colon, and its own settings ask for sampling."""
    from transformers import (
        GenerationConfig,
        Idefics3Config,
        Idefics3ForConditionalGeneration,
        Idefics3ImageProcessor,
        Idefics3Processor,
    )

    special = ["<pad>", "<end_of_utterance>", "<image>", "<fake_token_around_image>", "<global-img>"]
    tokenizer = _tokenizer(special)
    image_processor = Idefics3ImageProcessor(
        do_image_splitting=False, size={"longest_edge": 64}, max_image_size={"longest_edge": 64}
    )
    chat = _template("{{m['role'] | capitalize}} :", "<image>", "<end_of_utterance>\n", "Assistant :")
    Idefics3Processor(image_processor, tokenizer, image_seq_len=4, chat_template=chat).save_pretrained(folder)
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2}
    text = {"model_type": "llama", "num_hidden_layers": 2, "num_key_value_heads": 2, "vocab_size": len(tokenizer)}
    config = Idefics3Config(
        vision_config={**sizes, "num_hidden_layers": 1, "image_size": 64, "patch_size": 16},
        text_config={**sizes, **text, "pad_token_id": 0},
        scale_factor=2,
        image_token_id=special.index("<image>"),
        pad_token_id=0,
    )
    model = Idefics3ForConditionalGeneration(config)
    model.generation_config = GenerationConfig(eos_token_id=1, pad_token_id=0, do_sample=True, temperature=5.0)
    return _save(model, folder)


def qwen3_vl(folder: Path) -> ModelCard:
    """Sees images at their own size; marks every token as text or image."""
    from transformers import (
        GenerationConfig,
        Qwen2VLImageProcessor,
        Qwen3VLConfig,
        Qwen3VLForConditionalGeneration,
        Qwen3VLProcessor,
        Qwen3VLVideoProcessor,
    )

    special = ["<|endoftext|>", "<|im_end|>", "<|im_start|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"]
    special.append("<|video_pad|>")
    tokenizer = _tokenizer(special)
    image_processor = Qwen2VLImageProcessor(
        patch_size=16, merge_size=2, size={"shortest_edge": 32 * 32, "longest_edge": 128 * 128}
    )
    image = "<|vision_start|><|image_pad|><|vision_end|>"
    chat = _template("<|im_start|>{{m['role']}}\n", image, "<|im_end|>\n", "<|im_start|>assistant\n")
    processor = Qwen3VLProcessor(image_processor, tokenizer, Qwen3VLVideoProcessor(), chat_template=chat)
    processor.save_pretrained(folder)
    rope = {"rope_type": "default", "mrope_section": [4, 2, 2], "mrope_interleaved": True}
    sizes = {"hidden_size": 32, "intermediate_size": 32}
    config = Qwen3VLConfig(
        vision_config={
            **sizes,
            "depth": 2,
            "num_heads": 2,
            "out_hidden_size": 32,
            "deepstack_visual_indexes": [0],
            "num_position_embeddings": 64,
            "patch_size": 16,
        },
        text_config={
            **sizes,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "vocab_size": len(tokenizer),
            "rope_scaling": rope,
        },
        image_token_id=5,
        video_token_id=6,
        vision_start_token_id=3,
        vision_end_token_id=4,
    )
    model = Qwen3VLForConditionalGeneration(config)
    model.generation_config = GenerationConfig(eos_token_id=[1, 0], pad_token_id=0)
    return _save(model, folder)


def florence2(folder: Path) -> ModelCard:
    """An encoder for image and prompt, a decoder for the answer. Its own settings ask for three beams."""
    from tokenizers import decoders
    from transformers import (
        CLIPImageProcessor,
        Florence2Config,
        Florence2ForConditionalGeneration,
        Florence2Processor,
        GenerationConfig,
    )

    special = ["<pad>", "</s>", "<s>", "<image>", *(f"<loc_{place}>" for place in range(0, 1000, 10))]
    tokenizer = _tokenizer(special, bos_token="<s>", extra_special_tokens={"image_token": "<image>"})
    tokenizer.backend_tokenizer.decoder = decoders.Fuse()  # boxes are read from a text without spaces
    side = {"height": 64, "width": 64}
    image_processor = CLIPImageProcessor(size=side, crop_size=side, do_center_crop=False, image_seq_length=5)
    kinds = ["ocr", "phrase_grounding", "pure_text", "description_with_bboxes", "polygons", "bboxes"]
    kinds.append("description_with_bboxes_or_polygons")
    Florence2Processor(image_processor, tokenizer, post_processor_config={kind: {} for kind in kinds}).save_pretrained(
        folder
    )
    ids = {"bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0, "decoder_start_token_id": 1}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    layers = {"encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
    config = Florence2Config(
        vision_config={
            "depths": (1, 1, 1, 1),
            "embed_dim": (8, 16, 16, 32),
            "num_heads": (2, 2, 2, 2),
            "num_groups": (2, 2, 2, 2),
            "window_size": 4,
            "projection_dim": 32,
            "drop_path_rate": 0.0,
        },
        text_config={
            "model_type": "bart",
            "d_model": 32,
            "vocab_size": len(tokenizer),
            "max_position_embeddings": 64,
            **heads,
            **layers,
            **ids,
        },
        image_token_id=special.index("<image>"),
        **ids,
    )
    model = Florence2ForConditionalGeneration(config)
    model.generation_config = GenerationConfig(
        num_beams=3, early_stopping=True, no_repeat_ngram_size=3, forced_bos_token_id=2, forced_eos_token_id=1, **ids
    )
    return _save(model, folder)


def _tokenizer(special: Sequence[str], **more: Any) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    ids = {token: number for number, token in enumerate([*special, "<unk>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocab=ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        pad_token=special[0],
        eos_token=special[ANSWER_ENDS],
        additional_special_tokens=list(special),
        **more,
    )


def _template(begin: str, image: str, end: str, answer: str) -> str:
    return (
        "{% for m in messages %}" + begin + "{% for c in m['content'] %}"
        "{% if c['type'] == 'image' %}" + image + "{% else %} {{c['text']}}{% endif %}"
        "{% endfor %}" + end + "{% endfor %}{% if add_generation_prompt %}" + answer + "{% endif %}"
    )


def _save(model: Any, folder: Path) -> ModelCard:
    generator = torch.Generator().manual_seed(0)
    deep = model.config.is_encoder_decoder
    with torch.no_grad():
        for parameter in model.parameters():  # large enough that images and prompts matter
            if not deep:
                parameter.normal_(std=0.3, generator=generator)
            elif parameter.ndim > 1:  # many normalisations, whose scale must stay
                parameter.normal_(std=2.0 * parameter[0].numel() ** -0.5, generator=generator)
    model.save_pretrained(folder)
    extra = sorted(path.name for path in folder.iterdir() if path.suffix != ".safetensors")
    return ModelCard.model_validate(
        {
            "name": folder.name,
            "task": "image-text-to-text",
            "engine": "transformers",
            "architecture": type(model).__name__,
            "weights": {"path": str(folder / "model.safetensors"), "extra_files": extra},
            "licence": "Apache-2.0",
            "memory_gb": 0.1,
        }
    )
