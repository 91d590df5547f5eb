"""Things made, not found: random-weight checkpoints with the real architectures."""
