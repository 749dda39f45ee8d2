"""Classes from a YAML file."""

from __future__ import annotations

from pydantic import ValidationError

from labelmill.operators.ontology import Ontology
from labelmill.pipelines.config.yaml_file import read_yaml
from labelmill.pipelines.errors import UserError


def read_ontology(path: str) -> Ontology:
    """The classes of a YAML file, such as one of conf/ontologies.

    Raises:
        UserError: It cannot be read, or names no classes.
    """
    values = read_yaml(path).values
    try:
        found = Ontology.model_validate(values)
    except ValidationError as error:
        raise UserError(f"{path}: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from error
    if not found.classes:
        raise UserError(f"{path}: must have at least one class but is empty")
    return found
