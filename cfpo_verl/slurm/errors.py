"""The error of everything that can go wrong before and around a job."""


class SlurmError(ValueError):
    """A job cannot be rendered, submitted or found; the message names the value, the rule and the way out."""
