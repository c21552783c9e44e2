"""``python -m bridge`` is ``phosphene``."""

import sys

from bridge.cli import main

if __name__ == "__main__":
    sys.exit(main())
