"""Hand on what a run has learnt: a Hugging Face folder with a model card, by verl's own merger (docs/export.md)."""
