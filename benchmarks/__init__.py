"""What is measured: each part is `python -m benchmarks.NAME --json`."""
