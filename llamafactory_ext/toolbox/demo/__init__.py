"""A tiny ChatTS and a made-up GDSH data set, for a first run without a download; a larger pair for the full demo."""
