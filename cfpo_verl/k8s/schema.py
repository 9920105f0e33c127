"""Whether a manifest is one that Kubernetes and KubeRay know: rayjob.schema.yaml, and how its refusals are worded."""

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
    """Refuse objects that the schema does not allow.

    Raises:
        JobError: With a line for each value that does not fit.
    """
    problems = []
    for each in objects:
        for error in sorted(_validator().iter_errors(each), key=lambda error: list(map(str, error.absolute_path))):
            place = ".".join(map(str, [each.get("kind", "?"), *error.absolute_path]))
            problems.append(f"{place}: {error.message}")
    if problems:
        raise JobError("\n".join([*problems, "See docs/kubernetes.md for what each key of the site's file becomes"]))
