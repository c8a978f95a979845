"""What is put into a LLaMA-Factory install, where, and which runs it concerns."""
