"""How fast the memory is, as ratios to what the machine allows in the same run; `python -m benchmarks.speed`."""
