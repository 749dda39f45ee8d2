"""What ``import labelmill`` gives: runs, operators and models, from Python.

>>> import labelmill
>>> run = labelmill.run({
...     "name": "tidy",
...     "source": {"folder": "images"},
...     "steps": ["inspect", {"keep": "sharpness >= 0.08"}, {"embed": {"model": "clip-miniature"}}],
... })
>>> run.steps
('inspect', 'keep', 'embed')
>>> sum(run.outcomes.values()) == len(run)
True
>>> run.images(["inspect.width", "embedding"]).column_names
['image_id', 'key', 'uri', 'split', 'outcome', 'inspect.width', 'embedding']

The same folder later, or one that `labelmill run` made:

>>> table = labelmill.open_run("runs/tidy").to_pandas(["sharpness"], kept=True)
>>> bool((table.sharpness >= 0.08).all())
True

One operator on images at hand, with the answers that a run would have:

>>> detect = labelmill.operator("detect", model="grounding-dino-miniature", ontology=["cup", "fish"])
>>> answer = detect(run.image(table.index[0]))
>>> sorted(answer)
['decision', 'decision.reason', 'detections']
>>> answer["decision"]
'kept'
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from labelmill.pipelines.config.pipeline import Pipeline, build_alone, build_pipeline, load_pipeline
from labelmill.pipelines.config.yaml_file import parse_yaml
from labelmill.pipelines.errors import UserError
from labelmill.pipelines.run_folder.run import Run, png
from labelmill.pipelines.steps import chain

if TYPE_CHECKING:
    from labelmill.operators.applying.worker import Worker

SHARD_SIZE = 256
"""Images that are looked at together, as many as in a shard of a run: so micro-batches, and answers, are the same."""


def open_run(folder: str | os.PathLike[str]) -> Run:
    """A run that is there.

    Args:
        folder: Its directory: a path or an fsspec URL such as ``s3://bucket/run``.

    Raises:
        UserError: There is none.
    """
    return Run(os.fspath(folder))


def run(
    pipeline: Mapping[str, Any] | str | os.PathLike[str] | Pipeline,
    *,
    inline: bool = True,
    workers: int | None = None,
    report: bool = False,
    progress: bool = False,
) -> Run:
    """Do whatever of a pipeline is not done yet.

    Args:
        pipeline: A mapping as the YAML file would hold, the path of such a file, or what `load_pipeline` gave.
        inline: In this process; otherwise as `labelmill run` would choose.
        workers: Upper bound of the workers of a pool; means that it is not inline.
        report: Write ``report.html`` at the end.
        progress: Print how it goes.

    Returns:
        The finished run.

    Raises:
        ConfigError: The pipeline is wrong; says where, and what must be.
        UserError: The source, the output or a model is not what it must be.
    """
    from labelmill.pipelines.run import Options
    from labelmill.pipelines.run import run as run_pipeline

    built = _built(pipeline)
    options = Options(inline=inline and workers is None, workers=workers, report=report)
    run_pipeline(built, options, _reporter(progress))
    assert built.settings.output is not None
    return Run(built.settings.output)


def models() -> list[dict[str, Any]]:
    """Every model card: its name, task, licence, memory, and whether its weights are on this machine (`here`).

    >>> next(card["task"] for card in models() if card["name"] == "clip-miniature")
    'embedding'
    """
    from labelmill.pipelines.commands.catalogue import list_models

    return list_models()


class ImageModel:
    """An operator on images at hand. `labelmill.operator` makes one; its model is loaded at the first call."""

    def __init__(self, name: str, params: Mapping[str, Any]) -> None:
        from labelmill.operators.base import ImageOperator

        operator = build_alone(name, params)
        if not isinstance(operator, ImageOperator) or operator.reads():
            needs = ", ".join(operator.reads()) if isinstance(operator, ImageOperator) else "columns, not images"
            raise UserError(f"operator {name!r} reads {needs}; put it into a pipeline and use labelmill.run")
        self.name, self._step, self._operator = name, chain([], name, name, operator), operator
        self._worker: Worker | None = None

    def __call__(self, images: Any) -> Any:
        """Look at images.

        Args:
            images: One image or a sequence of them; each a path or URL, the bytes of a file, a PIL image, or a uint8
                array (height, width, 3) of RGB or (height, width) of grey.

        Returns:
            Of one image a dict of the operator's columns, `decision` (kept, failed or undone) and `decision.reason`; of
            a sequence an Arrow table of the same, one row per image in their order. An image that cannot be read is a
            row that says so, as in a run.

        Raises:
            UserError: What the operator needs is not here.
            TypeError: Something is no image.
        """
        if isinstance(images, Sequence) and not isinstance(images, str | bytes):
            return self._table(list(images))
        return self._table([images]).to_pylist()[0]

    def _table(self, images: list[Any]) -> pa.Table:
        parts = [self._shard(images[at : at + SHARD_SIZE]) for at in range(0, len(images), SHARD_SIZE)]
        return pa.concat_tables(parts or [self._shard([])])

    def _shard(self, images: list[Any]) -> pa.Table:
        from labelmill.operators.applying.apply import Job, apply
        from labelmill.operators.applying.shard_images import ShardImages
        from labelmill.operators.applying.worker import Worker
        from labelmill.pipelines.engine.work import load

        for image in images:
            _refuse_no_image(image)
        if self._worker is None:
            self._operator.ready()
            load(self._step)
            self._worker = Worker(self._operator)
        names = [str(place) for place in range(len(images))]
        rows = pa.table(
            {"image_id": pa.array(range(1, len(images) + 1), pa.int64()), "key": pa.array(names, pa.string())}
        )
        job = Job(self._worker, rows, np.ones(len(images), bool))
        table, _ = apply(job, ShardImages(names, lambda name: _bytes(images[int(name)])), threads=2)
        return table.select([*self._operator.writes().names, "decision", "decision.reason"])


def operator(name: str, **params: Any) -> ImageModel:
    """An operator that sees images alone, ready to be called on some.

    Args:
        name: As in a pipeline: a built-in name, an entry point, or ``module:Class``.
        params: As in a pipeline: ``model="grounding-dino-tiny"``, ``ontology=["cup"]``.

    Raises:
        ConfigError: A name or a parameter is wrong.
        UserError: The operator reads what other steps wrote, such as `segment` without ``everything=True``.
    """
    return ImageModel(name, params)


def _built(pipeline: Mapping[str, Any] | str | os.PathLike[str] | Pipeline) -> Pipeline:
    if isinstance(pipeline, Pipeline):
        return pipeline
    if isinstance(pipeline, Mapping):
        import yaml

        text = yaml.safe_dump(dict(pipeline), sort_keys=False, allow_unicode=True)
        return build_pipeline(parse_yaml("pipeline", text))
    return load_pipeline(os.fspath(pipeline))


def _reporter(progress: bool) -> Any:
    if progress:
        from rich.console import Console

        from labelmill.pipelines.engine.terminal import TerminalReporter

        return TerminalReporter(Console())
    return _Silent()


class _Silent:
    """Tells nobody."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return lambda *args, **kwargs: None


def _refuse_no_image(image: Any) -> None:
    from PIL import Image

    if isinstance(image, str | bytes | os.PathLike | Image.Image):
        return
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.shape[2:] in ((), (3,)) and image.ndim > 1:
        return
    told = f"an array of {image.dtype} {image.shape}" if isinstance(image, np.ndarray) else repr(type(image).__name__)
    raise TypeError(
        "an image must be a path, the bytes of a file, a PIL image or a uint8 array (height, width, 3) of RGB or "
        f"(height, width) of grey but is {told}"
    )


def _bytes(image: Any) -> bytes:
    if isinstance(image, bytes):
        return image
    if isinstance(image, str | os.PathLike):
        from labelmill.pipelines.sources import Fetcher
        from labelmill.pipelines.sources.uri import as_location, file_uri, is_remote

        where = as_location(os.fspath(image))
        return Fetcher({})(where if is_remote(where) else file_uri(str(Path(where).absolute())))
    return png(image)
