"""How a fresh clone becomes a runnable package. Standard library only: it runs before anything is installed."""
