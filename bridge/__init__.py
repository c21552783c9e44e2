"""The bridge: everything the world touches. Textures, control, the preview page and the engine's life. No torch."""
