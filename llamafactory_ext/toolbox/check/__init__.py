"""Looks at a data set the way a training run would see it: what `llamafactory-ext check` shows.

The main path is `inspection.inspect`. LLaMA-Factory is met in `upstream` alone; `facts`, `labels`, `findings`,
`likeness`, `lengths` and `plot` are functions over plain values, usable and tested without it.
"""
