"""Ways to answer a question about a stream, side by side over the same frames."""
