"""Commands that look at a model or a run: one file each."""
