"""The command ``llamafactory-ext plan``, for a clone that is not installed."""

import sys

from llamafactory_ext.__main__ import main


sys.argv.insert(1, "plan")
sys.exit(main())
