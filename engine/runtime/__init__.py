"""Runtime services of the engine: CUDA streams, device locks, thread limits, the C allocator, and an LRU memo."""
