"""The demo: the installed node on a recording, asked through its service."""
