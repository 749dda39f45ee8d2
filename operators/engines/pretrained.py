"""transformers' models with a card's weights in them, or as training finds them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from labelmill.operators.models import weights
from labelmill.operators.models.card import ModelCard
from labelmill.operators.models.device import seeded

if TYPE_CHECKING:
    import torch


def initial(card: ModelCard, config: Any, seed: int) -> Any:
    """A model of the card's class before training, whatever the card's weights are."""
    import transformers

    with seeded(seed):
        return getattr(transformers, card.architecture)(config)


def pretrained(card: ModelCard, config: Any, dtype: torch.dtype | None = None, constants: tuple[str, ...] = ()) -> Any:
    """A model of the card's class with the card's weights.

    Args:
        card: Whose architecture is a class of transformers.
        config: transformers' configuration of it.
        dtype: Of its weights; transformers' choice if None.
        constants: Endings of the names of tensors that may stand in the file without being weights.

    Raises:
        ModelError: The weights are missing, corrupt or of another model.
    """
    import transformers

    state = weights.read(card)
    options = {} if dtype is None else {"dtype": dtype}
    with silence():
        # transformers renames old checkpoints' tensors and fills in tied ones.
        model, report = getattr(transformers, card.architecture).from_pretrained(
            None, config=config, state_dict=state, output_loading_info=True, ignore_mismatched_sizes=True, **options
        )
    weights.refuse_misfit(
        card,
        missing=sorted(report["missing_keys"]),
        unexpected=sorted(name for name in report["unexpected_keys"] if not name.endswith(constants)),
        mismatched=sorted(
            f"{name} must be {tuple(want)} but is {tuple(got)}" for name, got, want in report["mismatched_keys"]
        ),
    )
    return model


@contextmanager
def silence() -> Iterator[None]:
    """transformers draws a bar and prints a report; what is wrong becomes a ModelError instead."""
    from transformers.utils import logging as untyped

    logging: Any = untyped
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
