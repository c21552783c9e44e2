"""The bridge: everything the world touches. Textures, control, the panel and the engine's life. No torch."""
