"""``phosphene bench``: the paper's comparisons on this machine, any model."""
