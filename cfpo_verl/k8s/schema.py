"""Validation of manifests against rayjob.schema.yaml."""

from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Any

import jsonschema
import yaml
from jsonschema.protocols import Validator

from cfpo_verl.sites import JobError


@cache
def _validator() -> Validator:
    schema = yaml.safe_load((files("cfpo_verl.k8s") / "rayjob.schema.yaml").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def check(objects: Sequence[dict[str, Any]]) -> None:
    """Validate objects against the schema.

    Raises:
        JobError: With one line per invalid value.
    """
    problems = []
    for item in objects:
        for error in sorted(_validator().iter_errors(item), key=lambda error: list(map(str, error.absolute_path))):
            place = ".".join(map(str, [item.get("kind", "?"), *error.absolute_path]))
            problems.append(f"{place}: {error.message}")
    if problems:
        raise JobError("\n".join([*problems, "`cfpo-verl k8s example` explains each key of the site's file"]))
