"""What a training run needs in memory, said before it is started. Pure Python, no torch."""
