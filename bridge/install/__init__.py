"""Installation from a checkout: which Python, the virtual environment, the packages. Standard library alone."""
