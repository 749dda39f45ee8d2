"""The operators that `tests.benchmarks.operators` times: the sizes of real cards, with weights that are drawn.

Speed does not depend on what the weights are, but for what they find. So the boxes that `segment` and `gaze` start from
are given, `read` is told where twenty words are, and `ask` chooses between two answers of one token each.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from labelmill.operators import registry
from labelmill.operators.columns.schemas import SIDES
from labelmill.operators.engines.pretrained import silence
from labelmill.operators.models.card import ROOT, ModelCard, load_card
from labelmill.operators.models.device import seeded
from tests.benchmarks import operator_forwards as forwards
from tests.operators.engines.segmentation import tiny_sams

WIDTH, HEIGHT = 640, 480
"""Of the images that `tests.benchmarks.mill.draw` draws."""

CLASSES = ["car", "dog", "person"]


@dataclass(frozen=True)
class Case:
    """One operator, and what it is compared with.

    Attributes:
        step: The word used in a pipeline.
        card: The model card whose sizes it has, by name.
        bare: Makes the bare forward pass of a batch, see `operator_forwards`.
        batch: Images per call of the model on a CPU, where a larger one gains nothing.
        batches: Those to choose the best of on a GPU.
        images: That each process sees in one turn on a CPU.
        boxes: That each image comes with.
        many: A number of boxes whose cost is compared with that of `boxes`.
        loop: Makes the reference loop, see `operator_forwards`.
        params: Of the step, besides the model.
        config: Of the card in place of its own: what files beside the weights would say.
        small: A card with small sizes, by name, or the `config` that makes this one small.
        ready: Done to the loaded operator.
    """

    step: str
    card: str
    bare: Callable[[Any, list[Any]], forwards.Forward]
    batch: int
    batches: tuple[int, ...]
    images: int
    boxes: int = 0
    many: int = 0
    loop: Callable[[Any], forwards.Loop] | None = None
    params: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] | None = None
    small: str | dict[str, Any] = ""
    ready: Callable[[Any], None] | None = None

    @property
    def name(self) -> str:
        return f"{self.step} {self.card}"

    def load(self, small: bool, folder: Path) -> Any:
        """The operator with its model.

        Args:
            small: Whether to build small models.
            folder: Where files can be put that a model cannot do without.
        """
        cards = {"model": smolvlm(folder, small) if self.step == "ask" else self._drawn(self.card, small)}
        if self.step == "read":
            cards["recognition"] = drawn("doctr-recognition-miniature" if small else "doctr-crnn-vgg16")
        cls = registry.find(self.step)
        operator = cls(cls.Params.model_validate({**self.params, **cards}))
        operator.load()
        if self.ready is not None:
            self.ready(operator)
        return operator

    def _drawn(self, name: str, small: bool) -> ModelCard:
        if small and isinstance(self.small, str):
            return drawn(self.small)
        config = self.small if small else self.config
        return drawn(name) if config is None else drawn(name, config=config)


def drawn(name: str, **changed: Any) -> ModelCard:
    """A card of conf/models with weights that are drawn."""
    card = load_card(ROOT / "conf" / "models" / f"{name}.yaml").model_dump()
    return ModelCard.model_validate({**card, "weights": {"random": 0}, **changed})


def boxes_of(index: int, count: int) -> np.ndarray:
    """Boxes of an image: float32 (count, 4), xyxy in pixels, from a twelfth to a third of the image wide."""
    generator = np.random.default_rng(index)
    size = generator.uniform(WIDTH / 12, WIDTH / 3, (count, 2))
    corner = generator.uniform(0, 1, (count, 2)) * ((WIDTH, HEIGHT) - size)
    return np.concatenate([corner, corner + size], axis=1).astype(np.float32)


def detections_of(index: int, count: int) -> list[dict[str, Any]]:
    """The same as rows of `operators.columns.schemas.DETECTIONS`, all of them faces."""
    rest = {"class": "face", "score": 0.9, "prompt": "face", "mask": None}
    return [{**dict(zip(SIDES, box, strict=True)), **rest} for box in boxes_of(index, count).tolist()]


def smolvlm(folder: Path, small: bool) -> ModelCard:
    """A card for SmolVLM-256M's sizes (Marafioti et al. 2025), whose files are written to a folder.

    The processor splits an image of 4:3 into twelve tiles and adds the whole, as SmolVLM's does. The vocabulary is only
    as large as the prompt needs; the model's tables are as large as SmolVLM's.
    """
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        Idefics3Config,
        Idefics3ForConditionalGeneration,
        Idefics3ImageProcessor,
        Idefics3Processor,
        PreTrainedTokenizerFast,
    )

    special = ["<pad>", "<end_of_utterance>", "<image>", "<fake_token_around_image>", "<global-img>"]
    special += [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
    plain = ["<unk>", "User", "Assistant", ":", "Is", "there", "a", "face", "?", "Yes", "No"]
    words = Tokenizer(models.WordLevel({word: place for place, word in enumerate([*special, *plain])}, "<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words,
        unk_token="<unk>",
        pad_token=special[0],
        eos_token=special[1],
        additional_special_tokens=special,
    )
    tile = 64 if small else 512
    images = Idefics3ImageProcessor(size={"longest_edge": 4 * tile}, max_image_size={"longest_edge": tile})
    chat = (
        "{% for m in messages %}{{m['role'] | capitalize}} : {% for c in m['content'] %}"
        "{% if c['type'] == 'image' %}<image>{% else %} {{c['text']}}{% endif %}{% endfor %}<end_of_utterance>\n"
        "{% endfor %}{% if add_generation_prompt %}Assistant :{% endif %}"
    )
    places = (tile // 16 // 4) ** 2
    Idefics3Processor(images, tokenizer, image_seq_len=places, chat_template=chat).save_pretrained(folder)
    vision = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
    text = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9}
    text |= {"num_key_value_heads": 3}
    if small:
        vision = text = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = Idefics3Config(
        vision_config={**vision, "image_size": tile, "patch_size": 16},
        text_config={**text, "model_type": "llama", "vocab_size": 49280, "pad_token_id": 0},
        scale_factor=4,
        image_token_id=special.index("<image>"),
        pad_token_id=0,
    )
    with seeded(0), silence():
        Idefics3ForConditionalGeneration(config).to(torch.bfloat16).save_pretrained(folder)
    real = load_card(ROOT / "conf" / "models" / "smolvlm-256m.yaml").model_dump()
    extra = sorted(path.name for path in folder.iterdir() if path.suffix != ".safetensors")
    weights = {"path": str(folder / "model.safetensors"), "extra_files": extra}
    return ModelCard.model_validate({**real, "weights": weights})


CASES = [
    Case(
        "embed",
        "clip-vit-b-32",
        forwards.embed,
        batch=16,
        batches=(64, 256),
        images=32,
        loop=forwards.open_clip_loop,
        small="clip-random",
    ),
    Case(
        "detect",
        "grounding-dino-tiny",
        forwards.detect,
        batch=1,
        batches=(4, 8),
        images=1,
        loop=forwards.grounding_dino_loop,
        params={"ontology": CLASSES},
        # What transformers' GroundingDinoConfig is by itself: Swin-T, BERT base, 900 candidates.
        config={"model": {}, "tokenizer": "ascii"},
        small="grounding-dino-random",
    ),
    Case(
        "segment",
        "sam-vit-b",
        forwards.segment,
        batch=1,
        batches=(1, 4),
        images=1,
        boxes=1,
        many=20,
        loop=forwards.sam_predictor_loop,
        small=tiny_sams.CONFIG,
    ),
    Case(
        "segment",
        "sam2.1-hiera-small",
        forwards.segment,
        batch=1,
        batches=(1, 4),
        images=1,
        boxes=1,
        many=20,
        small={"model": tiny_sams.SAM2},
    ),
    Case(
        "read",
        "doctr-db-resnet50",
        forwards.read,
        batch=1,
        batches=(8, 16),
        images=1,
        small="doctr-detection-miniature",
        ready=forwards.plant_words,
    ),
    Case(
        "gaze",
        "l2cs-gaze360",
        forwards.gaze,
        batch=8,
        batches=(16, 32),
        images=8,
        boxes=1,
        small="l2cs-miniature",
    ),
    Case(
        "ask",
        "smolvlm-256m",
        forwards.ask,
        batch=1,
        batches=(1, 4),
        images=1,
        params={"prompt": "Is there a face ?", "answers": ["Yes", "No"]},
    ),
]
