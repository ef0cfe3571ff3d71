"""Faults at random under load: `python -m tests.chaos --help`, `make chaos`.

| file | job |
| --- | --- |
| `registry.py` | several tiny models for few workers and little host memory, so that they are swapped all the time |
| `target.py` | the gateway, on a disk of its own, and what one may kill of it |
| `traffic.py` | the load; it knows each answer from before, and judges what it gets |
| `clients.py` | clients that leave, stall, or cut their bodies |
| `faults.py` | the kinds of faults: each happens, lasts, and is undone |
| `run.py` | one fault after another, until all is well again; what is promised is checked after each |
| `left.py` | what a gateway may not gather, nor leave behind |
| `record.py` | what came of each fault, in a file over many runs, and the report |
"""
