"""embed: what an image shows, as a vector."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import pyarrow as pa
from pydantic import AfterValidator

from operators.base import RowError, tuning
from operators.engines import open_clip
from operators.model_operator import ModelOperator, ModelParams
from operators.models.card import ModelCard, require
from operators.schemas import embedding

if TYPE_CHECKING:
    from operators.images import DecodedImage

EmbeddingCard = Annotated[ModelCard, AfterValidator(require("embedding", ("open_clip",)))]
"""A card that `embed` and `classify` can use."""


class Embed(ModelOperator):
    """Image vectors of a contrastive image-text model (Radford et al. 2021, CLIP), L2-normalised.

    Two images that show the same have a high cosine; `deduplicate`, `cluster` and `classify` build on it.
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
        return pa.schema([pa.field("embedding", embedding(open_clip.dimensions(self.params.model)))])

    def check(self, columns: Mapping[str, pa.DataType]) -> None:
        super().check(columns)
        open_clip.settings(self.params.model)

    def load(self) -> None:
        self._encoder = open_clip.ImageEncoder(self.params.model, self.params.dtype)

    def prepare(self, image: DecodedImage, row: Mapping[str, Any]) -> Any:
        return self._encoder.prepare(image.pil())

    def infer(self, items: list[Any]) -> list[dict[str, Any] | RowError]:
        vectors = self._encoder.encode(items)
        finite = np.isfinite(vectors).all(axis=1)
        return [
            {"embedding": vector.astype(np.float16)} if good else RowError("the model gave a vector that is not finite")
            for vector, good in zip(vectors, finite, strict=True)
        ]
