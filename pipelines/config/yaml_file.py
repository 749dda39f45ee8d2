"""A pipeline file as plain values that remember their lines: OmegaConf reads it, PyYAML says where things stand."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from labelmill import CONF
from labelmill.operators.secrets import PLAIN, hide, keep_secret
from labelmill.pipelines.errors import ConfigError, UserError, nearest

KeyPath = tuple[str | int, ...]


@dataclass(frozen=True)
class YamlFile:
    """A read file.

    Attributes:
        name: As the user wrote it.
        values: Plain dicts, lists and scalars, interpolations resolved.
        lines: 1-based line of every key path.
        references: The text of every value that came from the environment (``${oc.env:…}``), by its key path.
    """

    name: str
    values: dict[str, Any]
    lines: dict[KeyPath, int]
    references: dict[KeyPath, str] = field(default_factory=dict)

    def problem(self, path: KeyPath, message: str) -> str:
        """``file:line: key: message``; the line is that of the nearest enclosing key that the file has."""
        known = path
        while known not in self.lines and known:
            known = known[:-1]
        line = self.lines.get(known, 1)
        where = f"{describe(path)}: " if path else ""
        return hide(f"{self.name}:{line}: {where}{message}")


def describe(path: KeyPath) -> str:
    """``steps[3].detect.floor``."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def read_yaml(name: str | os.PathLike[str], overrides: list[str] | None = None, names: bool = False) -> YamlFile:
    """Read a YAML mapping.

    Args:
        name: A local path; see `shipped`.
        overrides: ``a.b=value`` assignments. The first part is a key of the file or the name of a step.
        names: See `parse_yaml`.

    Raises:
        UserError: There is no such file. ConfigError: It is no YAML mapping, an interpolation cannot be resolved or
            an override names nothing.
    """
    path = shipped(name)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        folder = path.parent if path.parent.is_dir() else Path()
        raise UserError(
            f"there is no file {str(name)!r}{nearest(path.name, (p.name for p in folder.glob('*.yaml')))}"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{name} cannot be read: {error}") from error
    return parse_yaml(str(name), text, overrides, names=names)


def shipped(name: str | os.PathLike[str]) -> Path:
    """A file, or where it is not there and is called ``conf/…``, the one of that name that comes with labelmill."""
    path = Path(name)
    own = CONF.joinpath(*path.parts[1:])
    return own if path.parts[:1] == ("conf",) and own.is_file() and not path.exists() else path


def parse_yaml(
    name: str, text: str, overrides: list[str] | None = None, keys_may_lack: bool = False, names: bool = False
) -> YamlFile:
    """A YAML mapping from its text; see `read_yaml`.

    Args:
        name: Of the file, for messages.
        text: What it holds.
        overrides: ``a.b=value`` assignments.
        keys_may_lack: Leave out storage options whose environment variable is not set, for whoever reads no image.
        names: All of it is names, as in a file of an ontology; else what stands under ``ontology`` is.

    Raises:
        ConfigError: See `read_yaml`.
    """
    import yaml
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        tree = yaml.compose(text, Loader=yaml.SafeLoader)
        lines = _lines(tree, ()) if tree is not None else {}
        config = OmegaConf.create(_with_names_as_text(text, tree, names))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark is not None else 1
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise ConfigError([f"{name}:{line}: must be YAML but {problem}"]) from error
    if not OmegaConf.is_dict(config):
        raise ConfigError([f"{name}:1: must be a mapping of keys to values but is {type(tree).__name__}"])
    try:
        for override in overrides or []:
            _override(config, override)
        if keys_may_lack:
            _leave_out_unset(config)
        values = OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException as error:
        key = str(getattr(error, "full_key", "") or "")
        at = next((line for known, line in lines.items() if describe(known) == key), 1)
        message = str(error).splitlines()[0]
        raise ConfigError([hide(f"{name}:{at}: {key}: {message}")]) from error
    assert isinstance(values, dict)
    named: dict[str, Any] = {str(key): value for key, value in values.items()}
    return YamlFile(name, named, lines, _references(OmegaConf.to_container(config, resolve=False), named))


def _with_names_as_text(text: str, tree: Any, names: bool) -> str:
    """The text with quotes around names that YAML would take for something else: ``yes``, ``null``, ``1.50``, ``007``.

    Keys of mappings are names; so are all values below ``ontology``.
    """
    found: dict[int, Any] = {}

    def look(node: Any, named: bool) -> None:
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                if isinstance(key, yaml.ScalarNode) and (named or key.tag != STRING) and key.tag != MERGE:
                    found[key.start_mark.index] = key
                look(value, named or (isinstance(key, yaml.ScalarNode) and key.value == "ontology"))
        elif isinstance(node, yaml.SequenceNode):
            for value in node.value:
                if named and isinstance(value, yaml.ScalarNode):
                    found[value.start_mark.index] = value
                look(value, named)
        elif named and isinstance(node, yaml.ScalarNode) and node.tag != NULL:  # no prompts: the name is the prompt
            found[node.start_mark.index] = node

    import yaml

    look(tree, names)
    for start, node in sorted(found.items(), reverse=True):
        end = node.end_mark.index
        if node.style is None and node.value and "${" not in node.value and text[start:end].strip() == node.value:
            text = f"{text[:start]}{json.dumps(node.value, ensure_ascii=False)}{text[end:]}"
    return text


STRING, NULL, MERGE = (f"tag:yaml.org,2002:{kind}" for kind in ("str", "null", "merge"))

_ENVIRONMENT = re.compile(r"\$\{oc\.env:\s*([^,}\s]+)")


def _references(raw: Any, values: Any) -> dict[KeyPath, str]:
    """What came from the environment, directly or by way of another key; the values are kept secret from here on."""
    leaves = {path: text for path, text in _leaves(raw, ()) if isinstance(text, str) and "${" in text}
    resolved = dict(_leaves(values, ()))
    variables = {name for text in leaves.values() for name in _ENVIRONMENT.findall(text)}
    secrets = {name: value for name in variables if (value := os.environ.get(name))}
    found: dict[KeyPath, str] = {}
    for path, text in leaves.items():
        if is_place(path):
            continue  # it is told by the uri of every image
        here = str(resolved.get(path, ""))
        through = [name for name, value in secrets.items() if value in here]
        if _ENVIRONMENT.search(text) or through:
            found[path] = text
            for name in {*through, *_ENVIRONMENT.findall(text)} & secrets.keys():
                if path[-1] not in PLAIN:
                    keep_secret(secrets[name], f"${{oc.env:{name}}}")
    return found


def is_place(path: KeyPath) -> bool:
    """Whether a key says where images or results are, or what the run is called."""
    return path[0] in ("name", "output", "shard_size") or (path[0] == "source" and "storage_options" not in path)


def _leaves(value: Any, path: KeyPath) -> Iterator[tuple[KeyPath, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(inner, (*path, str(key)))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _leaves(inner, (*path, index))
    else:
        yield path, value


def _leave_out_unset(config: Any) -> None:
    """Remove storage options that need an environment variable which is not set."""
    from omegaconf import OmegaConf

    source = config.get("source")
    if not OmegaConf.is_dict(source) or "storage_options" not in source:
        return
    raw = OmegaConf.to_container(source["storage_options"], resolve=False)
    for path, text in list(_leaves(raw, ())):
        if isinstance(text, str) and any(name not in os.environ for name in _ENVIRONMENT.findall(text)):
            inner = source["storage_options"]
            for key in path[:-1]:
                inner = inner[key]
            del inner[path[-1]]


def with_references(file: YamlFile) -> dict[str, Any]:
    """The values of a file to write down: resolved, but for what came from the environment, which stays a reference."""

    def written(value: Any, path: KeyPath) -> Any:
        if path in file.references:
            return file.references[path]
        if isinstance(value, dict):
            return {key: written(inner, (*path, str(key))) for key, inner in value.items()}
        if isinstance(value, list):
            return [written(inner, (*path, index)) for index, inner in enumerate(value)]
        return value.replace("${", "\\${") if isinstance(value, str) else value

    return {key: written(value, (key,)) for key, value in file.values.items()}


def _lines(node: Any, path: KeyPath) -> dict[KeyPath, int]:
    import yaml

    lines = {path: node.start_mark.line + 1}
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            below = (*path, str(key.value))
            lines |= _lines(value, below)
            lines[below] = key.start_mark.line + 1
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            lines |= _lines(value, (*path, index))
    return lines


def _override(config: Any, override: str) -> None:
    """Apply ``--set a.b=value``; a step is addressed by its name."""
    from omegaconf import OmegaConf

    key, equals, text = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise ConfigError([f"--set must be KEY=VALUE, such as detect.floor=0.2, but is {override!r}"])
    import yaml

    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError([f"--set {key}: the value must be YAML but is {text!r}"]) from error
    steps = config.get("steps") or []
    named = {step_label(step): index for index, step in enumerate(steps)}
    if parts[0] in TOP_LEVEL:
        OmegaConf.update(config, key.strip(), value, force_add=True)
        return
    if parts[0] not in named:
        raise ConfigError(
            [f"--set {key}: there is no step or key {parts[0]!r}{nearest(parts[0], [*named, *TOP_LEVEL])}"]
        )
    if len(parts) == 1:
        raise ConfigError([f"--set {key}: name a parameter of the step too, such as {key}.PARAMETER=VALUE"])
    index = named[parts[0]]
    step = steps[index]
    if isinstance(step, str):
        config.steps[index] = {step: {}}
    operator = next(name for name in config.steps[index] if name != "as")
    if not OmegaConf.is_dict(config.steps[index][operator]):
        config.steps[index][operator] = expand(operator, config.steps[index][operator])
    OmegaConf.update(config.steps[index][operator], ".".join(parts[1:]), value, force_add=True)


TOP_LEVEL = ("name", "source", "output", "ontology", "steps", "export", "shard_size")


def step_label(step: Any) -> str:
    """The name a step goes by: its `as`, else that of its operator."""
    from labelmill.operators.registry import step_name

    if isinstance(step, str):
        return step_name(step)
    if "as" in step:
        return str(step["as"])
    return step_name(str(next(iter(step), "")))


def expand(operator: str, value: Any) -> dict[str, Any]:
    """``keep: "x > 1"`` → ``{where: "x > 1"}`` for operators whose Params name a shorthand."""
    from labelmill.operators.registry import find

    shorthand = getattr(find(operator).Params, "shorthand", None)
    if shorthand is None:
        raise ValueError(f"must be a mapping of parameters but is {value!r}")
    return {shorthand: value}
