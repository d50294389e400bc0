"""Scripts a person runs: `python -m experiments.NAME`, each with --help. What they share is in `support`."""
