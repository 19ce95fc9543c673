"""The command line of the memory, a module for each family of commands."""
