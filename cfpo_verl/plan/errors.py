"""What plan cannot do."""


class PlanError(ValueError):
    """A configuration that the model does not cover; the message names the key and the way out."""
