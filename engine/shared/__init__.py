"""Shared by both processes: parameters, snapshots, frames, mailboxes, options and small helpers. No torch."""
