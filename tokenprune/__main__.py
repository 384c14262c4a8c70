"""`python -m tokenprune`."""

import sys

from tokenprune.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
