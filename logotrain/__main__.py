"""``python -m logotrain``."""

import sys

from logotrain.cli import main

sys.exit(main())
