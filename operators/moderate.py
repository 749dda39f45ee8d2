"""moderate: how probable it is that an image is not safe for work."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import pyarrow as pa
from pydantic import AfterValidator, Field

from labelmill.operators.base import Needs, tuning
from labelmill.operators.engines.embedding import encoder
from labelmill.operators.engines.moderation.moderator import Moderator, ZeroShot
from labelmill.operators.engines.registry import engine, require
from labelmill.operators.errors import OperatorError, RowError
from labelmill.operators.models.card import ModelCard
from labelmill.operators.models.operator import ModelOperator, ModelParams

if TYPE_CHECKING:
    from labelmill.operators.images.decoded import DecodedImage


def _usable(card: ModelCard) -> ModelCard:
    if card.task == "embedding":
        return require("embedding")(card)
    return require("moderation")(card)


ModerationCard = Annotated[ModelCard, AfterValidator(_usable)]
"""A card that `moderate` can use: for moderation, or for embedding."""


class Moderate(ModelOperator):
    """Scores images as not safe for work (0…1); a `keep` step decides.

    With a card for moderation a classifier says it. With a card for embedding whose model reads text (CLIP, SigLIP 2)
    the score is the probability of `nsfw` that `classify` would give, asked `nsfw` and `safe`: any kind of harm can be
    put into words. Where there is an `embed` step anyway, `classify` with such an ontology costs nothing more.

    No threshold suits every purpose. Open-NSFW's authors call an image below 0.2 probably safe and above 0.8 probably
    not; SigLIP's scores may be low throughout; and the default prompts are a start, not a measured choice. Look at what
    a threshold drops before trusting it.
    """

    name = "moderate"

    class Params(ModelParams):
        """What to look with, and how.

        Attributes:
            model: The model card. In the fingerprint its digest stands for it.
            nsfw: Prompts for what must not be there; only with a card for embedding.
            safe: Prompts for what may; likewise. SigLIP, which judges each class by itself, does not need them.
            batch: Images per call of the model.
        """

        model: ModerationCard = tuning(...)
        nsfw: tuple[str, ...] = Field(
            ("a pornographic picture", "a photo of naked people", "a picture of people having sex"), min_length=1
        )
        safe: tuple[str, ...] = Field(
            ("a photo of people with clothes on", "a photo of a thing", "a photo of an animal", "a photo of a place"),
            min_length=1,
        )
        batch: int = tuning(16, ge=1)

    params: Params

    def writes(self) -> pa.Schema:
        """`nsfw`: how probable it is that the image is not safe for work, 0…1."""
        return pa.schema([pa.field("nsfw", pa.float32())])

    def check(self, columns: Mapping[str, pa.DataType]) -> None:
        super().check(columns)
        if self._asks:
            encoder.check(self.params.model, text=True)
            return
        engine(self.params.model).check(self.params.model, self.params.dtype)
        for prompts in ("nsfw", "safe"):
            if prompts in self.params.model_fields_set:
                raise OperatorError(
                    f"{prompts} must not be given with {self.params.model.name}, which reads no prompts; leave it out "
                    "or take a card for embedding such as clip-vit-b-32",
                    (prompts,),
                )

    def needs(self) -> Needs:
        return Needs(gpu=self._asks, memory_gb=self.params.model.memory_gb, seconds=None if self._asks else 0.04)

    def ready(self) -> None:
        if not self._asks:
            engine(self.params.model).ready()
        super().ready()

    def load(self) -> None:
        given = self.params
        self._moderator: Moderator = (
            ZeroShot(given.model, given.dtype, given.nsfw, given.safe)
            if self._asks
            else engine(given.model).make(given.model)
        )

    def prepare(self, image: DecodedImage, row: Mapping[str, Any]) -> Any:
        return self._moderator.prepare(image.pixels)

    def infer(self, items: list[Any]) -> list[dict[str, Any] | RowError]:
        return [
            {"nsfw": score} if np.isfinite(score) else RowError("the model gave a score that is not finite")
            for score in self._moderator.score(items)
        ]

    @property
    def _asks(self) -> bool:
        """Whether the model is asked in words."""
        return self.params.model.task == "embedding"
