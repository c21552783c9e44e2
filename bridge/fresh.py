"""Old name of ``bridge.bootstrap``: ``python3 -m bridge.fresh run`` still works."""

import sys
from importlib import import_module

if __name__ == "__main__":
    sys.exit(import_module("bridge.bootstrap").main())
