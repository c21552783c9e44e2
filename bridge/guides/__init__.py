"""Guides for the programmes and desks around Phosphene, one a file, and the code that draws their pictures."""
