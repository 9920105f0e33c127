"""Data preparation: one file per source, all writing the rows of `schema.py`."""
