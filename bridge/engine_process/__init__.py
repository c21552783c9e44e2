"""The engine's process: spawning, supervising, a standby to take over."""
