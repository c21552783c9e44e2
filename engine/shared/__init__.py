"""What both processes use: parameters, snapshots, messages, frames, the mailbox. No torch."""
