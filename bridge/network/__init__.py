"""Who may connect, and how clients find the show."""
