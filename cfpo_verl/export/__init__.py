"""Export checkpoints as Hugging Face folders with a model card, using verl's own merger (docs/export.md)."""
