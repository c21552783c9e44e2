"""Everything that changes parameters over time: presets, cues, crossfades, modulators and the saved session."""
