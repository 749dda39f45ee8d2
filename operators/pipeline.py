"""pipeline: any model of the Hugging Face hub as a step."""

from __future__ import annotations

import difflib
import json
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import pyarrow as pa
from pydantic import AfterValidator, Field

from labelmill.operators.base import ImageOperator, Needs, OperatorParams, tuning
from labelmill.operators.engines.any_pipeline import transformers_pipeline
from labelmill.operators.engines.any_pipeline.pipeline_tasks import ALIASES, ELSEWHERE, TASKS, Task, other
from labelmill.operators.errors import OperatorError, RowError
from labelmill.operators.models.card import Dtype

if TYPE_CHECKING:
    from labelmill.operators.images.decoded import DecodedImage

RESERVED = ("batch_size", "do_sample", "num_workers", "return_tensors", "timeout")
"""Arguments of a call that would change the shape of its output, or make it a matter of chance."""


def _folder(model: str) -> str:
    """Absolute for a folder, because workers may run elsewhere."""
    folder = Path(model).expanduser()
    if folder.is_dir():
        return str(folder.resolve())
    if not transformers_pipeline.REPOSITORY.fullmatch(model):
        raise ValueError(
            f"must be a folder, or a repository of the hub such as google/vit-base-patch16-224, but there is no folder "
            f"{model}"
        )
    return model


def _named(task: str) -> str:
    task = ALIASES.get(task, task)
    if task in TASKS:
        return task
    from transformers import pipelines  # tells about the rest, of which there is little

    known = sorted({*TASKS, *ALIASES, *(name for name in pipelines.SUPPORTED_TASKS if not _elsewhere(name))})
    if task in pipelines.SUPPORTED_TASKS and not _elsewhere(task):
        return task
    why = ""
    if _elsewhere(task):
        why = "; it looks at something else than one image or one text"
    elif task in pipelines.REMOVED_TASKS:
        why = f"; transformers has it no more. {pipelines.REMOVED_TASKS[task]}"
    elif near := difflib.get_close_matches(task, known, n=1):
        why = f"; did you mean {near[0]}?"
    raise ValueError(f"must be one of {', '.join(known)} but is {task}{why}")


def _elsewhere(task: str) -> bool:
    return any(part in task for part in ELSEWHERE)


def _plain(options: dict[str, Any]) -> dict[str, Any]:
    try:
        json.dumps(options, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"must be numbers, texts, lists and mappings but: {error}") from error
    return options


@dataclass(frozen=True, slots=True)
class Item:
    """One image or text, as the pipeline takes it.

    Attributes:
        given: ``PIL.Image`` or str; None where there is no text.
        size: Height and width of an image.
    """

    given: Any
    size: tuple[int, int] | None = None


class Pipeline(ImageOperator):
    """Any task of ``transformers.pipeline`` over images or over a text column, with any model that does it.

    ===============================  ===================================================================================
    task                             columns
    ===============================  ===================================================================================
    image-classification,            `label` and `score`, the best; `labels` and `scores`, best first
    zero-shot-image-classification,
    text-classification,
    zero-shot-classification,
    fill-mask
    object-detection,                `detections`: box, class and score; the prompt if one was asked
    zero-shot-object-detection
    image-segmentation,              `detections` with masks, and the masks' extents as boxes; segments of a semantic
    mask-generation                  model have no score, masks of mask-generation the class "object"
    depth-estimation                 `depth`, a 16-bit PNG of the image's size; its 0 means `depth_min`, its 65535
                                     `depth_max`
    image-feature-extraction,        `embedding`, L2-normalised: the mean over all positions, or what the pooler gives
    feature-extraction               with the option `pool: true`
    image-text-to-text,              `text`: what the model writes, always the likeliest next word
    text-generation
    token-classification             `entities`: label, score, text, and where in the text
    any other                        `output`: a JSON text
    ===============================  ===================================================================================

    Rows without a text have nulls. Nothing is downloaded, nothing is unpickled, no code of a repository runs.
    """

    name = "pipeline"
    labels = "raw"

    class Params(OperatorParams):
        """Which task, which model, and its arguments.

        Attributes:
            task: As transformers names it, such as image-classification.
            model: A folder with the files of a model, or a repository of the Hugging Face hub that is in its local
                cache. In the fingerprint the digest of the files stands for it.
            revision: The commit or tag of the repository.
            column: The column of texts, for a task over text.
            options: Arguments of every call, such as threshold or candidate_labels.
            dtype: Arithmetic; `auto` is float32 on a CPU and float16 on a GPU.
            batch: Images or texts per call of the model.
        """

        task: Annotated[str, AfterValidator(_named)]
        model: Annotated[str, AfterValidator(_folder)] = tuning(...)
        revision: str | None = Field(None, min_length=1)
        column: str | None = None
        options: Annotated[dict[str, Any], AfterValidator(_plain)] = Field(default_factory=dict)
        dtype: Dtype = "auto"
        batch: int = tuning(16, ge=1)

    params: Params

    @cached_property
    def _task(self) -> Task:
        known = TASKS.get(self.params.task)
        return known or other("images" if self.params.column is None else "text")

    @cached_property
    def _found(self) -> Path:
        return transformers_pipeline.find(self.params.model, self.params.revision)

    @property
    def _name(self) -> str:
        """The model as labels name it: a folder by its own name, since where it lies is this machine's."""
        return Path(self.params.model).name if Path(self.params.model).is_dir() else self.params.model

    @property
    def _options(self) -> dict[str, Any]:
        return {**self._task.defaults, **self.params.options}

    def writes(self) -> pa.Schema:
        return self._schema

    def reads(self) -> tuple[str, ...]:
        return () if self.params.column is None else (self.params.column,)

    def expects(self) -> dict[str, pa.DataType]:
        return {} if self.params.column is None else {self.params.column: pa.string()}

    @cached_property
    def _schema(self) -> pa.Schema:
        vectors = self._task.columns is None
        return self._task.schema(transformers_pipeline.dimensions(self._found) if vectors else None)

    def check(self, columns: Mapping[str, pa.DataType]) -> None:
        super().check(columns)
        params, task = self.params, self._task
        if task.over == "text" and params.column is None:
            raise OperatorError(f"column must name a column of texts with {params.task} but is not given", ("column",))
        if task.over == "images" and params.column is not None:
            raise OperatorError(
                f"column must not be given with {params.task}, which looks at images, but is {params.column}",
                ("column",),
            )
        if Path(params.model).is_dir() == (params.revision is not None):
            kind = "not be given with a folder" if params.revision else f"name a commit or tag of {params.model}"
            raise OperatorError(f"revision must {kind} but is {params.revision or 'not given'}", ("revision",))
        self._check_options()

    def _check_options(self) -> None:
        task, given = self._task, self.params.options
        for name in given:
            if name in RESERVED or (name == "generate_kwargs" and "do_sample" in (given[name] or {})):
                raise OperatorError(f"options must not have {name}, which the step decides", ("options", name))
            if task.options is not None and name not in task.options:
                near = difflib.get_close_matches(name, task.options, n=1)
                hint = f"; did you mean {near[0]}?" if near else ""
                known = ", ".join(task.options) or "nothing"
                raise OperatorError(
                    f"options of {self.params.task} must be among {known} but one is {name}{hint}", ("options", name)
                )
        labels = given.get("candidate_labels", ["any"])
        if not (isinstance(labels, list) and labels and all(isinstance(label, str) and label for label in labels)):
            raise OperatorError(
                f"options.candidate_labels must be a list of texts but is {labels!r}", ("options", "candidate_labels")
            )
        missing = [name for name in task.required if not given.get(name)]
        if missing:
            raise OperatorError(f"options of {self.params.task} must have {missing[0]} but have not", ("options",))

    def needs(self) -> Needs:
        return Needs(gpu=True, memory_gb=transformers_pipeline.memory_gb(self._found))

    def digest(self) -> str:
        return f"{self._name}@{transformers_pipeline.digest(self._found)}"

    def ready(self) -> None:
        transformers_pipeline.find(self.params.model, self.params.revision)

    def load(self) -> None:
        self._engine = transformers_pipeline.TransformersPipeline(
            self._found, self.params.task, self._task, self._options, self.params.dtype
        )
        self._models = [f"{self._name}@{transformers_pipeline.digest(self._found)[:12]}"]

    def prepare(self, image: DecodedImage, row: Mapping[str, Any]) -> Item:
        if self.params.column is not None:
            return Item(row[self.params.column])
        return Item(image.pil(), (image.height, image.width))

    def bucket(self, item: Item) -> Hashable:
        """Images of one size become tensors of one shape, whatever the model makes of them."""
        return item.size

    def infer(self, items: list[Item]) -> list[dict[str, Any] | RowError]:
        seen = [item for item in items if item.given is not None]
        outputs = iter(self._engine.run([item.given for item in seen]) if seen else [])
        nothing = dict.fromkeys(self.writes().names)
        return [nothing if item.given is None else self._columns(next(outputs), item) for item in items]

    def _columns(self, output: Any, item: Item) -> dict[str, Any] | RowError:
        try:
            columns = self._task.convert(output, item.size)
        except RowError as error:
            return error
        scores = [columns.get("score"), *(columns.get("scores") or ())]
        if not np.isfinite([score for score in scores if score is not None]).all():
            return RowError("the model gave scores that are not finite; try dtype: float32")
        if "detections" in columns:
            columns["detections"] = [{**each, "models": self._models} for each in columns["detections"]]
        return columns
