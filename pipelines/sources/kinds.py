"""The kinds of sources, as a pipeline names them."""

from typing import Literal, get_args

Kind = Literal["folder", "coco", "yolo", "voc", "cvat", "label_studio", "parquet", "webdataset", "huggingface"]
KINDS: tuple[Kind, ...] = get_args(Kind)
