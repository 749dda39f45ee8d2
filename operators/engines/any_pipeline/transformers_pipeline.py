"""Any model of transformers behind ``transformers.pipeline``, from files that are on this machine.

Weights are safetensors and code is transformers' own: a model that needs pickle or code of its repository is refused,
and so is one whose weights leave a part of the task's architecture untrained.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labelmill.operators.engines.any_pipeline.pipeline_tasks import Task
from labelmill.operators.engines.pretrained import silence
from labelmill.operators.models.card import Dtype, ModelError, file_sha256
from labelmill.operators.models.device import inference, pick_device, pick_dtype

if TYPE_CHECKING:
    import torch

SUFFIXES = (".json", ".jinja", ".model", ".safetensors", ".txt", ".tiktoken")
"""Of the files that a model is loaded from: configuration, chat template, vocabulary, weights."""

REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


def find(model: str, revision: str | None) -> Path:
    """The folder of a model on this machine; downloads nothing.

    Args:
        model: A folder, or a repository of the Hugging Face hub, which is looked for in the hub's local cache.
        revision: Of the repository.

    Raises:
        ModelError: It is not here, or not whole; with the command that brings it.
    """
    folder = Path(model)
    if not folder.is_dir():
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import LocalEntryNotFoundError

        try:
            folder = Path(snapshot_download(model, revision=revision, local_files_only=True))
        except LocalEntryNotFoundError as error:
            raise ModelError(
                f"model {model} at revision {revision} is not here; run `{_pull(model, revision)}`"
            ) from error
    advice = "" if revision is None else f"; run `{_pull(model, revision)}`"
    for name in ("config.json", *_weights(folder)):
        if not (folder / name).is_file():
            raise ModelError(f"model {model} must have a file {name} but {folder} has none{advice}")
    return folder


def _pull(model: str, revision: str | None) -> str:
    wanted = " ".join(f"--include '*{suffix}'" for suffix in SUFFIXES)
    return f"hf download {model} --revision {revision} {wanted}"


def _weights(folder: Path) -> list[str]:
    """Names of the files that hold the weights: one, or those that an index lists."""
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return ["model.safetensors"]
    return [index.name, *sorted(set(_read_json(index).get("weight_map", {}).values()))]


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{path} must be JSON but cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise ModelError(f"{path} must hold a mapping but holds {type(found).__name__}")
    return found


def digest(folder: Path) -> str:
    """Of the names and contents of all files that a model is loaded from: 64 hexadecimal digits."""
    files = sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES and path.is_file())
    return hashlib.sha256(json.dumps([[path.name, file_sha256(path)] for path in files]).encode()).hexdigest()


def memory_gb(folder: Path) -> float:
    """Of the loaded model with a working batch, guessed from the size of its weights."""
    return 0.5 + 2 * sum((folder / name).stat().st_size for name in _weights(folder)) / 1e9


def dimensions(folder: Path) -> int:
    """Of the vectors that a model gives, from its configuration.

    Raises:
        ModelError: The configuration does not say.
    """
    config = _read_json(folder / "config.json")
    size = config.get("hidden_size") or config.get("dim") or (config.get("hidden_sizes") or [None])[-1]
    if not isinstance(size, int):
        raise ModelError(f"{folder / 'config.json'} must have hidden_size, dim or hidden_sizes but has none of them")
    return size


class TransformersPipeline:
    """A pipeline with its model loaded.

    Args:
        folder: The model's files.
        name: Of the task.
        task: What is known about it here.
        options: Arguments of every call.
        dtype: Arithmetic; ``auto`` is float32 on a CPU and float16 on a GPU. Weights stay float32 unless it generates.

    Raises:
        ModelError: The files are corrupt, or of a model that cannot do this task.
    """

    def __init__(self, folder: Path, name: str, task: Task, options: Mapping[str, Any], dtype: Dtype) -> None:
        import torch

        self._device = pick_device()
        chosen = pick_dtype(dtype, None, self._device)
        self._autocast = torch.float32 if task.generates else chosen
        self._task, self._name = task, name
        self._options = dict(options)
        self._prompt = self._options.pop("text", None)
        with silence():
            try:
                self._pipe = _build(
                    folder, name, task, options, chosen if task.generates else torch.float32, self._device
                )
            except ModelError:
                raise
            except Exception as error:  # every architecture has ways of its own to fail
                raise ModelError(f"model {folder} cannot be loaded for {name}: {error}") from error
        self._pipe.model.register_forward_hook(_numbers)
        if task.generates:
            generation = {**self._options.pop("generate_kwargs", {}), "do_sample": False}
            self._options |= generation if name == "text-generation" else {"generate_kwargs": generation}

    def run(self, items: Sequence[Any]) -> list[Any]:
        """The pipeline's output for each image (``PIL.Image``, RGB) or text."""
        with inference(self._device, self._autocast), silence():
            if self._task.options is None:
                return [self._pipe(item, **deepcopy(self._options)) for item in items]
            batch = len(items) if self._task.batched and self._can_pad() else 1
            options = deepcopy(self._options)  # pipelines write into them
            return list(self._pipe(_dataset([self._given(item) for item in items]), batch_size=batch, **options))

    def _can_pad(self) -> bool:
        return self._task.over == "images" or self._pipe.tokenizer.pad_token_id is not None

    def _given(self, item: Any) -> Any:
        if self._name == "zero-shot-object-detection":
            return {"image": item, "candidate_labels": self._options["candidate_labels"]}
        if self._name != "image-text-to-text":
            return item
        if getattr(self._pipe.processor, "chat_template", None) is None:
            return {"images": item, "text": self._prompt}
        from transformers.utils.chat_template_utils import Chat

        content = [{"type": "image", "image": item}, {"type": "text", "text": self._prompt}]
        messages: Any = [{"role": "user", "content": content}]
        return Chat(messages)


def _build(
    folder: Path, name: str, task: Task, options: Mapping[str, Any], dtype: torch.dtype, device: torch.device
) -> Any:
    import transformers
    from transformers import pipelines

    _, known, _ = pipelines.PIPELINE_REGISTRY.check_task(name)
    config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    fitting = [auto for auto in known["pt"] if type(config) in auto._model_mapping]
    if not fitting:
        raise ModelError(f"model must be able to do {name} but {folder} is a {config.model_type} model, which is not")
    model, report = fitting[0].from_pretrained(
        folder,
        config=config,
        dtype=dtype,
        use_safetensors=True,
        local_files_only=True,
        trust_remote_code=False,
        output_loading_info=True,
    )
    # A model's vector needs its pooler only where it is asked for.
    spare = "pooler." if task.columns is None and not options.get("pool") else None
    missing = sorted(key for key in report["missing_keys"] if spare is None or not key.startswith(spare))
    if missing:
        shown = ", ".join(missing[:3]) + (", …" if len(missing) > 3 else "")
        raise ModelError(
            f"model {folder} must be trained for {name} but {len(missing)} tensors of {type(model).__name__} are "
            f"missing in its weights ({shown})"
        )
    kind = known["impl"]
    if isinstance(kind, str):
        kind = getattr(pipelines, kind.rpartition(".")[2])
    parts = ("tokenizer", "image_processor", "feature_extractor", "processor")
    given = {part: str(folder) for part in parts if getattr(kind, f"_load_{part}") is not False}
    make: Any = transformers.pipeline
    return make(name, model=model.eval(), device=device, trust_remote_code=False, **given)


def _dataset(items: list[Any]) -> Any:
    """What makes every pipeline give one output per item, whatever its call does with lists."""
    from torch.utils.data import Dataset

    class Items(Dataset):  # type: ignore[misc,type-arg,unused-ignore]
        def __len__(self) -> int:
            return len(items)

        def __getitem__(self, index: int) -> Any:
            return items[index]

    return Items()


def _numbers(module: Any, args: Any, output: Any) -> None:
    """Refuse what is not a number, which pipelines would take for a low score, and leave half precision behind."""
    import torch

    if not isinstance(output, Mapping):
        return
    for key, value in list(output.items()):
        if torch.is_tensor(value) and value.is_floating_point():
            if value.isnan().any():
                raise ValueError("the model gave values that are not numbers; try dtype: float32")
            if value.dtype in (torch.float16, torch.bfloat16):
                output[key] = value.float()  # type: ignore[index]
