"""Migrating from the predecessor: a copy, a load, a verification."""
