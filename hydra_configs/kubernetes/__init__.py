"""Config files only; a package so that Hydra finds them by pkg://cfpo_verl.hydra_configs."""
