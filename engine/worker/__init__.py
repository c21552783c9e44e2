"""The engine process: its frame loop, model reloads, stream crossfades, and offline rendering."""
