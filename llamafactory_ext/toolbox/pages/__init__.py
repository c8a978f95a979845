"""Pages: one frame, one style and one way to draw a series, for all of them."""
