"""What a worker remembers of one operator between shards."""

from __future__ import annotations

from dataclasses import dataclass, field

from labelmill.operators.applying.patience import Patience, Watch
from labelmill.operators.base import ImageOperator, Operator


@dataclass(slots=True)
class Worker:
    """What a worker remembers of one operator between shards.

    Attributes:
        operator: Loaded.
        patience: How long it waits for what passes.
        watch: Whether so much of it is undone that the step should stop.
        batch: Images per micro-batch; halved for good when the accelerator runs out of memory.
    """

    operator: Operator
    patience: Patience = field(default_factory=Patience)
    batch: int = field(init=False)
    watch: Watch = field(init=False)

    def __post_init__(self) -> None:
        self.watch = Watch(self.patience.limits)
        self.batch = self.operator.batch if isinstance(self.operator, ImageOperator) else 1
