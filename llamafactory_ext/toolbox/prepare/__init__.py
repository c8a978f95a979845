"""GDSH annotations and their CSV files made into training data: checked, merged, shortened, split, registered.

Needs numpy, orjson, pyarrow and, for thinning, tsdownsample; neither torch nor LLaMA-Factory.
`llamafactory-ext prepare` is the command line.
"""

from .options import Options, PrepareError
from .pipeline import prepare


__all__ = ["Options", "PrepareError", "prepare"]
