"""The stores. They know nothing of each other."""
