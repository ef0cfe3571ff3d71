"""Traces of requests to many models, read from files or generated from published parameters."""
