"""classify: which class of the ontology an image shows, judged by its embedding."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
from pydantic import Field

from labelmill.operators.base import KEPT, Decision, Needs, OperatorParams, TableOperator, TableResult, tuning
from labelmill.operators.columns.schemas import embedding
from labelmill.operators.columns.vectors import Vectors
from labelmill.operators.engines.embedding import encoder
from labelmill.operators.engines.embedding.encoder import EmbeddingCard, Template, class_texts
from labelmill.operators.errors import OperatorError
from labelmill.operators.models.weights import verify
from labelmill.operators.ontology import Ontology


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
        self.use(encoder.text_encoder(self.params.model))

    def use(self, texts: encoder.TextEncoder) -> None:
        """Ask a text side of `params.model` that is loaded already, in place of `load`.

        Raises:
            OperatorError: A text is longer than the model reads.
        """
        self._encoder = texts
        sentences = class_texts(self.params.ontology, self.params.templates)
        self._vectors = encoder.class_vectors(self._encoder, sentences)

    def compute(self, table: pa.Table) -> TableResult:
        """Rows without a usable embedding fail; the others get their classes."""
        vectors = Vectors(table.column(self.params.embedding))
        where = np.flatnonzero(vectors.usable)
        probabilities = self._encoder.probabilities(vectors.take(where) @ self._vectors.T).astype(np.float32)
        best = probabilities.argmax(axis=1)

        classes = self.params.ontology.classes
        spread = np.full(len(vectors), -1)
        spread[where] = np.arange(len(where))
        take = pa.array(spread, mask=~vectors.usable)
        columns = pa.table(
            [
                pa.array([classes[index] for index in best], pa.string()).take(take),
                pa.array(probabilities[np.arange(len(where)), best], pa.float32()).take(take),
                pa.array(list(probabilities), pa.list_(pa.float32())).take(take),
            ],
            schema=self.writes(),
        )
        decisions = [KEPT] * len(vectors)
        for row, problem in vectors.problems.items():
            decisions[row] = Decision("failed", problem)
        return TableResult(columns, decisions)
