"""A run from its start to its last checkpoint: what is trained, in which memory, what is measured, how it resumes."""
