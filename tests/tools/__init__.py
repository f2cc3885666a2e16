"""The real programs that tests, demo and benchmarks run, built from pinned Go modules."""
