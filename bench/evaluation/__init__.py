"""The evaluation: the scheduler's policies against each other and against published figures, in the simulator."""
