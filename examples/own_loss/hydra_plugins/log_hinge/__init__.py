"""Makes the config groups of log_hinge visible to Hydra, which looks into packages with an `__init__.py` only."""
