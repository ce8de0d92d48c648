"""The retrieval server: one thread that searches, a follower of the registry, and HTTP in front of them."""
