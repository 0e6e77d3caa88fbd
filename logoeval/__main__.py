"""``python -m logoeval``."""

import sys

from logoeval.cli import main

sys.exit(main())
