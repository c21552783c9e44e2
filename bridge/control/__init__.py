"""What sets parameters: the state, and the ways in."""
