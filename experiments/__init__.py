"""Recipes: one file each, named by what it trains. `EXPERIMENT` is what `flaxbert pretrain NAME` runs."""
