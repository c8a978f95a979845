"""What stops an evaluation."""


class EvaluateError(Exception):
    """Predictions or data that can't be scored. The message tells file, line, what was found and what was expected."""
