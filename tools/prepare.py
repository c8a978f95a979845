"""The command ``llamafactory-ext prepare``, for a clone that is not installed."""

import sys

from llamafactory_ext.__main__ import main


sys.argv.insert(1, "prepare")
sys.exit(main())
