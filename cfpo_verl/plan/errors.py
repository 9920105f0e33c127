"""What plan cannot do."""

from cfpo_verl.errors import UserError


class PlanError(UserError):
    """A configuration that the estimate does not cover; the message names the key and the way out."""
