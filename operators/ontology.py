"""The ontology: canonical class → the prompts that mean it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import ConfigDict, RootModel, model_validator


def normalise(prompt: str) -> str:
    """The form in which two prompts are the same: trimmed, single spaces, lower case."""
    return " ".join(prompt.split()).casefold()


class Ontology(RootModel[dict[str, tuple[str, ...]]]):
    """Ordered mapping of canonical class names to prompts.

    In YAML: ``car: [car, taxi]``, ``stop sign: stop sign``, or a plain list of names that are their own prompts.
    The order of the classes is the order of class ids in every export.

    Raises:
        ValueError: A class without prompts, an empty name, or one prompt that means two classes.
    """

    model_config = ConfigDict(frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _expand(cls, value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            value = {str(name): name for name in value}
        if not isinstance(value, dict):
            raise ValueError("must map class names to prompts, or be a list of class names")
        expanded: dict[str, tuple[str, ...]] = {}
        for name, prompts in value.items():
            if prompts is None:
                prompts = name
            if isinstance(prompts, (str, int, float)):
                prompts = [prompts]
            expanded[str(name).strip()] = tuple(str(prompt).strip() for prompt in prompts)
        return expanded

    @model_validator(mode="after")
    def _check(self) -> Ontology:
        owners: dict[str, str] = {}
        for name, prompts in self.root.items():
            if not name:
                raise ValueError("a class name must not be empty")
            if not prompts or not all(prompts):
                raise ValueError(f"class {name!r} must have at least one prompt and none that is empty")
            for prompt in prompts:
                owner = owners.setdefault(normalise(prompt), name)
                if owner != name:
                    raise ValueError(f"prompt {prompt!r} must mean one class but means {owner!r} and {name!r}")
        return self

    @property
    def classes(self) -> tuple[str, ...]:
        """Canonical class names in order."""
        return tuple(self.root)

    def prompts(self) -> Iterator[tuple[str, str]]:
        """Every (prompt, canonical class) pair in order, each distinct prompt once."""
        for name, prompts in self.root.items():
            seen: set[str] = set()
            for prompt in prompts:
                if normalise(prompt) not in seen:
                    seen.add(normalise(prompt))
                    yield prompt, name
