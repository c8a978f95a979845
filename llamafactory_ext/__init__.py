"""Fine-tunes ChatTS on GDSH anomaly data with a stock LLaMA-Factory.

Nothing is imported here: Python runs this file at every start (through the ``.pth`` file), in programs too that have
nothing to do with LLaMA-Factory.
"""

__version__ = "0.1.0"
