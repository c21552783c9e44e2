"""The stream batch and the formulas it follows."""
