"""What changes parameters over time: presets, cues, crossfades, modulators, the saved session."""
