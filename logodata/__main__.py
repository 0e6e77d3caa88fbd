import sys

from logodata.cli import main

sys.exit(main())
