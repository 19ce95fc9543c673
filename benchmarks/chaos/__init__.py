"""Random faults against real stores and real processes, judged by a model of what was acknowledged."""
