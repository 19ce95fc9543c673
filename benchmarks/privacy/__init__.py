"""Attacks on the whole bot, judged by what they bring about; `python -m benchmarks.privacy --json`."""
