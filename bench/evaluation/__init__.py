"""The evaluation: compares the scheduler's policies with each other and with published figures, in the simulator."""
