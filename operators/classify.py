"""classify: which class of the ontology an image shows, judged by its embedding."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import numpy as np
import pyarrow as pa
from pydantic import AfterValidator, Field

from operators.base import KEPT, Decision, Needs, OperatorError, OperatorParams, TableOperator, TableResult, tuning
from operators.embed import EmbeddingCard
from operators.engines import encoder
from operators.models.weights import verify
from operators.ontology import Ontology
from operators.schemas import embedding


def _has_slot(template: str) -> str:
    if "{}" not in template:
        raise ValueError(f"must contain {{}} where the prompt goes but is {template!r}")
    return template


Template = Annotated[str, AfterValidator(_has_slot)]


class Classify(TableOperator):
    """Zero-shot classification (Radford et al. 2021, CLIP, section 3.1) on top of `embed`.

    A class is the mean of its prompts' vectors over all templates, each L2-normalised before and the mean after. What
    a probability means depends on how the model was trained. CLIP's are the softmax over all classes of the cosine
    times its learned scale: they say which class fits best among those that were asked, and always sum to 1. SigLIP's
    (Zhai et al. 2023) are the sigmoid of the cosine times its learned scale plus its learned bias: each says whether
    its class is there, whatever else was asked. They don't sum to 1, and all are low where no class fits.
    """

    name = "classify"

    class Params(OperatorParams):
        """What to look with, and how.

        Attributes:
            model: The card that made the embeddings. In the fingerprint its digest stands for it.
            ontology: The classes and their prompts; the pipeline's where a step names none.
            embedding: The column that `embed` wrote.
            templates: Sentences with {} for the prompt.
        """

        model: EmbeddingCard = tuning(...)
        ontology: Ontology
        embedding: str = "embedding"
        templates: tuple[Template, ...] = Field(("a photo of a {}.",), min_length=1)

    params: Params

    def reads(self) -> tuple[str, ...]:
        return (self.params.embedding,)

    def expects(self) -> dict[str, pa.DataType]:
        return {self.params.embedding: embedding(encoder.dimensions(self.params.model))}

    def writes(self) -> pa.Schema:
        """`class`; its `probability`; the `probabilities` of all classes in the ontology's order."""
        return pa.schema(
            [
                pa.field("class", pa.string()),
                pa.field("probability", pa.float32()),
                pa.field("probabilities", pa.list_(pa.float32())),
            ]
        )

    def check(self, columns: Mapping[str, pa.DataType]) -> None:
        super().check(columns)
        if not self.params.ontology.classes:
            raise OperatorError("ontology must have at least one class but is empty", ("ontology",))
        encoder.check(self.params.model, text=True)

    def needs(self) -> Needs:
        return Needs(memory_gb=self.params.model.memory_gb)

    def digest(self) -> str:
        # The order of the classes decides the order of `probabilities`.
        return "\n".join((self.params.model.digest(), *self.params.ontology.classes))

    def ready(self) -> None:
        verify(self.params.model)

    def load(self) -> None:
        self._encoder = encoder.text_encoder(self.params.model)
        templates, classes = self.params.templates, self.params.ontology.root.values()
        texts = [
            [template.replace("{}", prompt) for prompt in prompts for template in templates] for prompts in classes
        ]
        self._vectors = encoder.class_vectors(self._encoder, texts)

    def compute(self, table: pa.Table) -> TableResult:
        """Rows without a usable embedding fail; the others get their classes."""
        column = table.column(self.params.embedding).combine_chunks()
        width = column.type.list_size
        present = column.is_valid().to_numpy(zero_copy_only=False)
        vectors = np.zeros((len(column), width), dtype=np.float32)
        vectors[present] = column.drop_null().flatten().to_numpy(zero_copy_only=False).reshape(-1, width)
        with np.errstate(invalid="ignore"):
            norms = np.linalg.norm(vectors, axis=1)
        usable = np.isfinite(norms) & (norms > 0)

        # Stored embeddings are float16: their length is 1 only to three digits.
        cosines = (vectors[usable] / norms[usable, None]) @ self._vectors.T
        probabilities = self._encoder.probabilities(cosines).astype(np.float32)
        best = probabilities.argmax(axis=1)

        classes, where = self.params.ontology.classes, np.flatnonzero(usable)
        spread = np.full(len(column), -1)
        spread[where] = np.arange(len(where))
        take = pa.array(spread, mask=~usable)
        columns = pa.table(
            [
                pa.array([classes[index] for index in best], pa.string()).take(take),
                pa.array(probabilities[np.arange(len(where)), best], pa.float32()).take(take),
                pa.array(list(probabilities), pa.list_(pa.float32())).take(take),
            ],
            schema=self.writes(),
        )
        decisions = [KEPT] * len(column)
        for row in np.flatnonzero(~usable):
            decisions[row] = Decision("failed", _why(present[row], norms[row]))
        return TableResult(columns, decisions)


def _why(present: bool, norm: float) -> str:
    if not present:
        return "there is no embedding"
    return "the embedding must not be all zeros" if norm == 0 else "the embedding must be finite"
