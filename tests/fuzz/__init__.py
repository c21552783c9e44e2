"""What strangers send, thrown at every reader: ``python -m tests.fuzz`` counts it out, ``… guided`` searches by coverage."""
