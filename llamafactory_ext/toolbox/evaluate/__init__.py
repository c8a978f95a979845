"""Evaluation: the intervals that a model predicted against those of the data set, scored and shown."""
