"""What runs the parts of a model: the modules themselves, or something compiled that is put in their place while the stream runs."""

from engine.compile.accelerator import Accelerator

__all__ = ["Accelerator"]
