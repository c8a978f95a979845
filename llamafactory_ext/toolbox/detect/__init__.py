"""Detect: series in, intervals at their own rows and times out, by a model that an engine answers with."""
