"""Runtime services of the engine: CUDA streams, thread limits, the C allocator, and an LRU memo."""
