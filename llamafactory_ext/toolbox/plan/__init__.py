"""What a training run needs in memory, told before it is started. Pure Python, no torch."""
