"""The engine: everything that touches the denoiser. It opens no socket and knows no transport."""
