"""What tests and benchmarks share. Imported as ``support``; its folder is named in pyproject.toml and in benchmarks."""
