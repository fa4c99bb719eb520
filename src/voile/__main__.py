"""`python -m voile`."""

import sys

from voile.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
