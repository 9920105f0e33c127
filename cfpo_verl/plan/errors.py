"""The error of `cfpo-verl plan`."""

from cfpo_verl.errors import UserError


class PlanError(UserError):
    """A run that cannot be estimated; the message names the key or the file and the remedy."""
