"""The page for people: one document, what it asks, and the answers; for the server and the daemon."""
