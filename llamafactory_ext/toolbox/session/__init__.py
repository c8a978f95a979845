"""LLaMA-Factory without a run: a recipe's arguments, its records and their tokens, as training would see them."""
