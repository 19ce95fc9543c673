"""Backups of the whole memory, and restoring from them."""
