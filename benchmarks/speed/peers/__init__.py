"""What others take for the same operations, each as it comes and in an environment of its own."""
