"""Makes the config groups of cfpo_verl visible to every Hydra application, verl's own included."""
