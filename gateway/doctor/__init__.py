"""`prism doctor`: can this machine serve? A file for each topic looks at one and says what it found.

`command` runs them all and `report` prints what they say. What touches the GPU's driver runs in a process of its own
with a time limit (`probe`), as a driver out of order may never answer; `nvml`, `cuda` and `patches` are such processes.

`finding`, `driver` and `compilers` are for `make gpu` as well, before anything is installed: they have the standard
library alone, and what they need works in Python 3.8, to be able to say that it is too old.
"""
