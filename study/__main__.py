"""`python -m study COMMAND`, and the console script `study`."""

import sys

from study.cli import main as main

if __name__ == "__main__":
    sys.exit(main())
