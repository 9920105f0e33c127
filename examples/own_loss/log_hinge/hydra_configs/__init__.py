"""The config groups of log_hinge."""
