"""For TouchDesigner."""
