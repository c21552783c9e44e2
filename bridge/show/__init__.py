"""The running show: source threads, sink threads, the presenter, fallback and interpolation."""
