"""What pages about series have in common: which points of a series are drawn, and files that appear whole."""
