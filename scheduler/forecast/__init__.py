"""What is made of what was learned: expected load on KV caches, and what neighbours do to each other."""
