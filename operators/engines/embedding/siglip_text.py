"""The text side of SigLIP 2 (Tschannen et al. 2025), through transformers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from labelmill.operators.engines.embedding.transformers_model import TOKENIZER, build, check_text
from labelmill.operators.errors import OperatorError
from labelmill.operators.models import weights
from labelmill.operators.models.card import ModelCard, ModelError
from labelmill.operators.models.device import inference, pick_device

TEXTS = 64
"""Texts per call of the model."""

END, PAD = "<eos>", "<pad>"


class SiglipText:
    """The text side of a SigLIP 2 model, in float32.

    Training showed it lower-case texts, ended by ``<eos>`` and filled up to one length with ``<pad>``, which it reads
    like any other token: so are these.

    Args:
        card: A card whose architecture is SiglipModel or Siglip2Model, with ``tokenizer.json`` beside the weights.

    Raises:
        ModelError: Weights or tokenizer are missing, corrupt or of another model.
    """

    def __init__(self, card: ModelCard) -> None:
        check_text(card)
        self._tokenizer = _tokenizer(card)
        model = build(card)
        text = model.config.text_config
        if (found := self._tokenizer.get_vocab_size()) > text.vocab_size:
            raise ModelError(
                f"model card {card.name}: the tokenizer must have at most {text.vocab_size} tokens but has {found}"
            )
        self._limit = text.max_position_embeddings
        self._end, self._pad = (self._tokenizer.token_to_id(token) for token in (END, PAD))
        self._scale = model.logit_scale.exp().item()
        self._bias = model.logit_bias.item()
        self.device = pick_device()
        self._model = model.text_model.to(self.device)

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Vectors of texts.

        Returns:
            float32, (n, dimensions), L2-normalised.

        Raises:
            OperatorError: A text is longer than the model reads. Its own processor would cut it off.
        """
        import torch

        tokens = torch.tensor([self._tokens(text) for text in texts])
        parts = []
        with inference(self.device, torch.float32):
            for part in tokens.split(TEXTS):
                vectors = self._model(input_ids=part.to(self.device)).pooler_output
                parts.append(torch.nn.functional.normalize(vectors, dim=-1).cpu().numpy())
        return np.concatenate(parts)

    def probabilities(self, cosines: np.ndarray) -> np.ndarray:
        """Whether each text fits: the sigmoid of the cosine times the learned scale, plus the learned bias."""
        from scipy.special import expit

        found: np.ndarray = expit(np.float32(self._scale) * cosines + np.float32(self._bias))
        return found

    def _tokens(self, text: str) -> list[int]:
        from tokenizers.normalizers import Lowercase

        lower = Lowercase().normalize_str(text)
        ids = [*self._tokenizer.encode(lower, add_special_tokens=False).ids, self._end]
        if len(ids) > self._limit:
            raise OperatorError(f"a prompt must have at most {self._limit} tokens but {text!r} has {len(ids)}")
        return ids + [self._pad] * (self._limit - len(ids))


def _tokenizer(card: ModelCard) -> Any:
    """The card's tokenizer.

    Raises:
        ModelError: Its file is missing or corrupt, or is not of SigLIP 2.
    """
    from tokenizers import Tokenizer

    path = weights.files(card)[0].parent / TOKENIZER
    try:
        found = Tokenizer.from_file(str(path))
    except Exception as error:  # what a corrupt file raises depends on the byte that is wrong
        raise ModelError(f"model card {card.name}: the tokenizer cannot be read from {path}: {error}") from error
    missing = [token for token in (END, PAD) if found.token_to_id(token) is None]
    if missing:
        raise ModelError(f"model card {card.name}: the tokenizer {path} must have {' and '.join(missing)}")
    found.no_padding()
    found.no_truncation()
    return found
