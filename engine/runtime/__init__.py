"""What the engine asks of the machine: CUDA streams, threads, allocator; and an LRU memo."""
