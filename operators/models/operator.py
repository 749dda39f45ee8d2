"""What image operators with one model have in common."""

from __future__ import annotations

from labelmill.operators.base import ImageOperator, Needs, OperatorParams, tuning
from labelmill.operators.models.card import Dtype, ModelCard
from labelmill.operators.models.weights import verify

LIBRARIES = {
    "open_clip": ("torch", "labelmill.operators.engines.slim:import_open_clip"),
    "transformers": ("torch", "labelmill.operators.engines.slim:import_torchvision", "transformers"),
    "segment_anything": ("torch", "labelmill.operators.engines.slim:import_torchvision", "segment_anything"),
    "doctr": ("torch", "labelmill.operators.engines.slim:import_torchvision", "doctr.models"),
    "groundingdino": ("torch", "labelmill.operators.engines.slim:import_torchvision", "transformers"),
    "l2cs": ("torch", "labelmill.operators.engines.slim:import_torchvision"),
    "openai": ("openai",),
}
"""What an engine imports to build a model; onnxruntime, of others, starts threads when it is imported."""


def libraries_of(card: ModelCard) -> tuple[str, ...]:
    """Modules that building a card's model imports; see `Operator.libraries`."""
    return LIBRARIES.get(card.engine, ())


class ModelParams(OperatorParams):
    """Parameters of every such operator. One narrows `model` to the cards it can use.

    Attributes:
        model: The model card. In the fingerprint its digest stands for it.
        dtype: Arithmetic; `auto` is the card's, or else float32 on a CPU and float16 on a GPU.
        batch: Images per call of the model.
    """

    model: ModelCard = tuning(...)
    dtype: Dtype = "auto"
    batch: int = tuning(16, ge=1)


class ModelOperator(ImageOperator):
    """An `ImageOperator` whose results depend on the weights of ``params.model``, and that needs their memory."""

    params: ModelParams

    def needs(self) -> Needs:
        return Needs(gpu=True, memory_gb=self.params.model.memory_gb)

    def digest(self) -> str:
        return self.params.model.digest()

    def ready(self) -> None:
        verify(self.params.model)

    def libraries(self) -> tuple[str, ...]:
        return libraries_of(self.params.model)


class LabelOperator(ModelOperator):
    """A `ModelOperator` whose labels name its card (`ModelCard.reference`), so that the name is part of its results."""

    def digest(self) -> str:
        return f"{self.params.model.name}@{super().digest()}"
