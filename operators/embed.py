"""embed: what an image shows, as a vector."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from labelmill.operators.base import tuning
from labelmill.operators.columns.schemas import embedding
from labelmill.operators.engines.embedding import encoder
from labelmill.operators.engines.embedding.encoder import EmbeddingCard
from labelmill.operators.errors import RowError
from labelmill.operators.models.operator import ModelOperator, ModelParams

if TYPE_CHECKING:
    from labelmill.operators.images.decoded import DecodedImage


class Embed(ModelOperator):
    """Image vectors of a model that learned to compare (CLIP, SigLIP 2, DINOv3), L2-normalised.

    Two images that show the same have a high cosine; `deduplicate`, `cluster` and `classify` build on it. CLIP (Radford
    et al. 2021) and SigLIP 2 (Tschannen et al. 2025) put texts into the same space, which `classify` needs; DINOv3
    (Siméoni et al. 2025) has seen images only: its vectors tell more about look and shape, and nothing about words.
    """

    name = "embed"

    class Params(ModelParams):
        """What to look with, and how.

        Attributes:
            model: The model card. In the fingerprint its digest stands for it.
            batch: Images per call of the model.
        """

        model: EmbeddingCard = tuning(...)
        batch: int = tuning(32, ge=1)

    params: Params

    def writes(self) -> pa.Schema:
        return pa.schema([pa.field("embedding", embedding(encoder.dimensions(self.params.model)))])

    def check(self, columns: Mapping[str, pa.DataType]) -> None:
        super().check(columns)
        encoder.check(self.params.model)

    def load(self) -> None:
        self._encoder = encoder.image_encoder(self.params.model, self.params.dtype)

    def prepare(self, image: DecodedImage, row: Mapping[str, Any]) -> Any:
        return self._encoder.prepare(image.pixels)

    def infer(self, items: list[Any]) -> list[dict[str, Any] | RowError]:
        vectors = self._encoder.encode(items)
        finite = np.isfinite(vectors).all(axis=1)
        return [
            {"embedding": vector.astype(np.float16)} if good else RowError("the model gave a vector that is not finite")
            for vector, good in zip(vectors, finite, strict=True)
        ]
