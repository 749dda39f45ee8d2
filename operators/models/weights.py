"""From a card to a checked weights file on this machine. Only `pull` ever uses the network."""

from __future__ import annotations

import hashlib
import io
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from labelmill.operators.models.card import ModelCard, ModelError, Weights, file_sha256, local_paths

if TYPE_CHECKING:
    import torch

Progress = Callable[[str, int, int | None], None]
"""Told the file's name, the bytes that are here, and the bytes it has in all (None: unknown)."""

BLOCK = 1 << 20


def files(card: ModelCard) -> list[Path]:
    """The card's files on this machine: the weights first, then its extra files. None for random weights and endpoints.

    Raises:
        ModelError: Something is not here. Nothing is downloaded.
    """
    if card.weights.random is not None or card.weights.endpoint is not None:
        return []
    if card.weights.path is not None or card.weights.package is not None:
        return local_paths(card)
    found = _cached(card)
    missing = [name for name, path in found.items() if path is None]
    if missing:
        raise ModelError(
            f"weights of card {card.name} are not here ({', '.join(missing)}); run `labelmill models pull {card.name}`"
        )
    return [path for path in found.values() if path is not None]


def available(card: ModelCard) -> bool:
    """Whether a run can use the model without a download."""
    try:
        files(card)
    except ModelError:
        return False
    return True


def pull(card: ModelCard, progress: Progress | None = None) -> list[Path]:
    """Bring the card's files to this machine, unless they are here, and verify them.

    Args:
        card: The model.
        progress: Told how far each download is.

    Returns:
        As `files`.

    Raises:
        ModelError: A file cannot be fetched, or is not the one that the card means.
    """
    weights = card.weights
    report = progress or (lambda name, done, total: None)
    try:
        for name, path in _cached(card).items():
            if path is not None:
                continue
            if weights.url is not None:
                _download(card, weights.url, report)
            else:
                _download_hub(weights, name, report)
    except ModelError:
        raise
    except Exception as error:  # every protocol has errors of its own
        reason = f"{type(error).__name__}: {error}"
        raise ModelError(f"weights of card {card.name} cannot be fetched: {reason}") from error
    verify(card)
    return files(card)


def verify(card: ModelCard) -> None:
    """Check the weights file against the card's sha256, where it has one.

    Raises:
        ModelError: It is not here, or another file.
    """
    paths, expected = files(card), card.weights.sha256
    if expected is None:
        return
    found = file_sha256(paths[0])
    if found != expected:
        raise ModelError(f"weights of card {card.name} must have sha256 {expected} but {paths[0]} has {found}")


def read(card: ModelCard, inside: str | None = None) -> dict[str, torch.Tensor]:
    """The verified tensors of the card's weights file, on the CPU.

    ``.safetensors`` is read as such; anything else by ``torch.load(weights_only=True)``, which runs no code.

    Args:
        card: The model.
        inside: The key under which a file that is no safetensors keeps them, if it has that key.

    Raises:
        ModelError: The file is missing, another one, corrupt, or holds something else.
    """
    import torch

    verify(card)
    path = files(card)[0]
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state: Any = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what a corrupt file raises depends on the byte that is wrong
        raise ModelError(f"weights of card {card.name} cannot be read from {path}: {error}") from error
    if inside is not None and isinstance(state, Mapping):
        state = state.get(inside, state)
    if not isinstance(state, Mapping) or not all(isinstance(tensor, torch.Tensor) for tensor in state.values()):
        raise ModelError(f"weights of card {card.name} must be a mapping of names to tensors but {path} is not")
    return dict(state)


def fit(card: ModelCard, model: torch.nn.Module, state: Mapping[str, torch.Tensor]) -> None:
    """Put tensors into a model that has exactly those.

    Raises:
        ModelError: Names or shapes differ; with the first of them.
    """
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    given = {name: tuple(tensor.shape) for name, tensor in state.items()}
    refuse_misfit(
        card,
        missing=[name for name in wanted if name not in given],
        unexpected=[name for name in given if name not in wanted],
        mismatched=[
            f"{name} must be {shape} but is {given[name]}"
            for name, shape in wanted.items()
            if name in given and given[name] != shape
        ],
    )
    model.load_state_dict(state)


def refuse_misfit(card: ModelCard, missing: list[str], unexpected: list[str], mismatched: list[str]) -> None:
    """Say that weights belong to another architecture.

    Args:
        card: The model.
        missing: Tensors that the architecture has and the weights have not.
        unexpected: The reverse.
        mismatched: What differs in shape, in words.

    Raises:
        ModelError: Unless all three are empty.
    """
    parts = [
        f"{len(names)} {word} ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})"
        for word, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", mismatched))
        if names
    ]
    if parts:
        raise ModelError(f"weights of card {card.name} must fit {card.architecture} but: {'; '.join(parts)}")


def _cached(card: ModelCard) -> dict[str, Path | None]:
    """Each file of a hub or url card, and where it is on this machine if it is."""
    weights = card.weights
    if weights.url is not None:
        path = _url_cache(card)
        return {path.name: path if path.is_file() else None}
    if weights.hub is None or weights.file is None:
        return {}
    from huggingface_hub import try_to_load_from_cache

    found: dict[str, Path | None] = {}
    for name in (weights.file, *weights.extra_files):
        cached = try_to_load_from_cache(weights.hub, name, revision=weights.revision)
        found[name] = Path(cached) if isinstance(cached, str) else None
    return found


def _url_cache(card: ModelCard) -> Path:
    name = PurePosixPath(urlsplit(card.weights.url or "").path).name or "weights"
    base = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return base / "labelmill" / "models" / str(card.weights.sha256) / name


def _download(card: ModelCard, url: str, report: Progress) -> None:
    """Fetch a url into the cache: under a temporary name until its sha256 is right."""
    import fsspec

    target = _url_cache(card)
    target.parent.mkdir(parents=True, exist_ok=True)
    digest, done = hashlib.sha256(), 0
    descriptor, temporary = tempfile.mkstemp(dir=target.parent, prefix=".part-")
    try:
        with os.fdopen(descriptor, "wb") as sink, fsspec.open(url, "rb") as source:
            total = getattr(source, "size", None)
            while block := source.read(BLOCK):
                sink.write(block)
                digest.update(block)
                done += len(block)
                report(target.name, done, total)
        if digest.hexdigest() != card.weights.sha256:
            raise ModelError(
                f"weights of card {card.name} must have sha256 {card.weights.sha256} "
                f"but {url} gave {digest.hexdigest()} ({done} bytes)"
            )
        os.replace(temporary, target)
    finally:
        Path(temporary).unlink(missing_ok=True)


def _download_hub(weights: Weights, name: str, report: Progress) -> None:
    from huggingface_hub import hf_hub_download
    from tqdm import tqdm

    class Bar(tqdm):  # type: ignore[misc,unused-ignore]
        """Passes on what the download would draw."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "file": io.StringIO()})

        def display(self, *args: Any, **kwargs: Any) -> None:
            report(name, int(self.n), int(self.total) if self.total else None)

    hf_hub_download(str(weights.hub), name, revision=weights.revision, tqdm_class=Bar)
