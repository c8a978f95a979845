"""Looks at a data set the way a training run would see it: what `llamafactory-ext check` shows.

The main path is `inspection.inspect`. `findings` and `comparisons` are functions over plain values, usable and tested
without LLaMA-Factory.
"""
