"""The command ``llamafactory-ext evaluate``, for a clone that is not installed."""

import sys

from llamafactory_ext.__main__ import main


sys.argv.insert(1, "evaluate")
sys.exit(main())
