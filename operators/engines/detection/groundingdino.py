"""Grounding DINO (Liu et al. 2023) in its authors' own code: the module `groundingdino`, an optional dependency."""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import ConfigDict, Field

from labelmill.operators.engines.detection import captions
from labelmill.operators.engines.detection.detector import Detector
from labelmill.operators.engines.detection.grounding_dino import GroundingDino, Sizes, check_input
from labelmill.operators.engines.detection.grounding_dino_model import Vocabulary, remember_texts
from labelmill.operators.engines.registry import by_architecture
from labelmill.operators.models import weights
from labelmill.operators.models.card import ModelCard, ModelError
from labelmill.operators.models.device import seeded
from labelmill.operators.ontology import Ontology

if TYPE_CHECKING:
    import torch

UNUSED = ("label_enc.weight", "bert.embeddings.position_ids")
"""Tensors in the authors' checkpoints that inference does without: training's labels, and a constant."""


class Config(Vocabulary):
    """The `config` section of a card.

    Attributes:
        model: What differs from the authors' configuration of the architecture's name. `backbone` is one of their
            names, or the arguments of their SwinTransformer.
        bert: Arguments of transformers' BertConfig; without them, those of bert-base-uncased.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: dict[str, Any] = Field(default_factory=dict)
    bert: dict[str, Any] = Field(default_factory=dict)


class OriginalGroundingDino(GroundingDino):
    """A `Detector`: the authors' model. It is asked the captions that transformers' is asked, in the same tokens."""

    architectures: ClassVar[Collection[str]] = ("GroundingDINO_SwinT_OGC", "GroundingDINO_SwinB_cfg")
    """The authors' configurations, modules of `groundingdino.config`."""
    extra: ClassVar[str | None] = "groundingdino"

    @staticmethod
    def check(card: ModelCard, ontology: Ontology) -> None:
        """See `Detector`."""
        config = card.section("config", Config)
        if config.tokenizer is None and (card.weights.random is not None or not card.weights.extra_files):
            raise ModelError(
                f"model card {card.name}: weights must have extra_files with the tokenizer's files, such as "
                "bert-base-uncased's vocab.txt, or config must have a tokenizer"
            )
        check_input(card, ontology)

    def _build(self) -> Sizes:
        self.model = build(self._card, self.tokenizer).to(self.device)
        vocabulary = self.model.bert.config.vocab_size
        self._images, self._texts = _Images(self.model), remember_texts(self.model.bert)
        self.model.tokenizer, self.model.bert = _as_tokens, self._texts
        return Sizes(self.model.num_queries, self.model.num_feature_levels, vocabulary, self.model.max_text_len)

    def _look(self, pixels: torch.Tensor, caption: captions.Caption) -> tuple[torch.Tensor, torch.Tensor]:
        outputs = self.model(self._images.show(pixels), captions=[caption.ids] * len(pixels))
        return outputs["pred_logits"], outputs["pred_boxes"]


def engine_of(card: ModelCard) -> type[Detector]:
    """The detector that a card is for; see `by_architecture`."""
    found: type[Detector] = by_architecture(card, (OriginalGroundingDino,))
    return found


def build(card: ModelCard, tokenizer: Any) -> Any:
    """The card's model, in float32 on the CPU, ready for inference.

    Args:
        card: Whose weights are a checkpoint of the authors' (names of tensors to tensors, or those under ``model``,
            with or without ``module.`` before each name), as a torch file or as safetensors.
        tokenizer: Of BERT's vocabulary.

    Raises:
        ModelError: Its sizes cannot be built, or the weights are missing, corrupt or of another model.
    """
    state = None if card.weights.random is not None else weights.read(card, inside="model")
    with seeded(card.weights.random or 0):
        try:
            model = _initial(card, tokenizer)
        except Exception as error:  # the authors' code and transformers' validators have errors of many kinds
            raise ModelError(f"model card {card.name}: config cannot be built: {error}") from error
    if state is not None:
        state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
        weights.fit(card, model, _with_shared(model, {name: state[name] for name in state if name not in UNUSED}))
    return model.float().eval().requires_grad_(False)


def _initial(card: ModelCard, tokenizer: Any) -> Any:
    """The card's model as training finds it."""
    from groundingdino.models.GroundingDINO import backbone, groundingdino, transformer

    args = _settings(card)
    with _language_model(groundingdino, card, tokenizer):
        return groundingdino.GroundingDINO(
            _backbone(args) if isinstance(args.backbone, Mapping) else backbone.build_backbone(args),
            transformer.build_transformer(args),
            num_queries=args.num_queries,
            iter_update=True,
            query_dim=args.query_dim,
            num_feature_levels=args.num_feature_levels,
            nheads=args.nheads,
            two_stage_type=args.two_stage_type,
            dec_pred_bbox_embed_share=args.dec_pred_bbox_embed_share,
            two_stage_class_embed_share=args.two_stage_class_embed_share,
            two_stage_bbox_embed_share=args.two_stage_bbox_embed_share,
            sub_sentence_present=args.sub_sentence_present,
        )


def _settings(card: ModelCard) -> SimpleNamespace:
    """The authors' configuration with the card's changes."""
    from importlib import import_module

    theirs = vars(import_module(f"groundingdino.config.{card.architecture}"))
    known = {name: value for name, value in theirs.items() if not name.startswith("_")}
    changes = card.section("config", Config).model
    if unknown := sorted(changes.keys() - known.keys()):
        raise ValueError(f"model must have only keys of {card.architecture} but has {', '.join(unknown)}")
    # Checkpointing saves a training's memory by computing twice.
    return SimpleNamespace(**{**known, **changes, "use_checkpoint": False, "use_transformer_ckpt": False})


def _backbone(args: SimpleNamespace) -> Any:
    """A Swin Transformer of other sizes than those that the authors have names for."""
    from groundingdino.models.GroundingDINO.backbone.backbone import Joiner
    from groundingdino.models.GroundingDINO.backbone.position_encoding import build_position_encoding
    from groundingdino.models.GroundingDINO.backbone.swin_transformer import SwinTransformer

    swin = SwinTransformer(**args.backbone, out_indices=tuple(args.return_interm_indices))
    joined = Joiner(swin, build_position_encoding(args))
    joined.num_channels = [swin.num_features[level] for level in args.return_interm_indices]
    return joined


_BUILDING = threading.Lock()


@contextmanager
def _language_model(module: Any, card: ModelCard, tokenizer: Any) -> Iterator[None]:
    """Inside, the authors' constructor finds the card's BERT and tokenizer where it would download them.

    Their wrapper of BERT, which calls what transformers keeps to itself and changes, is left out.
    """
    bert = _bert(card.section("config", Config).bert)
    given = {
        "get_tokenlizer": SimpleNamespace(
            get_tokenlizer=lambda name: tokenizer, get_pretrained_language_model=lambda name: bert
        ),
        "BertModelWarper": lambda bert_model: bert_model,
    }
    with _BUILDING:
        found = {name: getattr(module, name) for name in given}
        try:
            vars(module).update(given)
            yield
        finally:
            vars(module).update(found)


def _bert(sizes: dict[str, Any]) -> Any:
    """BERT that takes what each token sees, bool (n, tokens, tokens), as its attention mask."""
    from transformers import BertConfig, BertModel

    class Bert(BertModel):
        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, **named: Any) -> Any:
            return super().forward(input_ids, attention_mask.bool().unsqueeze(1), **named)

    return Bert(BertConfig(**sizes))


def _with_shared(model: Any, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Give layers that are one under several names all of them: safetensors keeps each once."""
    one: dict[int, torch.Tensor] = {}
    tensors = model.state_dict(keep_vars=True)
    for name, tensor in tensors.items():
        if name in state:
            one.setdefault(id(tensor), state[name])
    shared = {name: one[id(tensor)] for name, tensor in tensors.items() if id(tensor) in one}
    return {**shared, **state}


def _as_tokens(caption_ids: list[tuple[int, ...]], **_: Any) -> Any:
    """Stand in for the tokenizer: captions come as ids already, all of one length."""
    import torch
    from transformers import BatchEncoding

    ids = torch.tensor(caption_ids)
    return BatchEncoding(
        {"input_ids": ids, "token_type_ids": torch.zeros_like(ids), "attention_mask": torch.ones_like(ids)}
    )


class _Images:
    """Encodes the images of a batch once, however many captions are asked of them."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self.kept: Any = None

    @contextmanager
    def one_batch(self) -> Iterator[None]:
        try:
            yield
        finally:
            self.kept = None
            self._model.unset_image_tensor()

    def show(self, pixels: torch.Tensor) -> Any:
        """Tell the model what the batch's images look like; none is padded."""
        import torch
        from groundingdino.util.misc import NestedTensor

        images = NestedTensor(pixels, torch.zeros_like(pixels[:, 0], dtype=torch.bool))
        if self.kept is None:
            self.kept = self._model.backbone(images)
        features, positions = self.kept
        self._model.set_image_features(features, list(positions))  # the model appends to the latter
        return images
