"""Workloads of many models: read from files, or drawn from published parameters."""
