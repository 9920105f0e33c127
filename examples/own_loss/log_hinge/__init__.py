"""A policy loss and an advantage estimator for verl. Hydra imports this package at start-up, so it must stay empty."""
