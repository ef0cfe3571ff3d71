"""Reports which adaptations to upstream the installed versions still need, and which of their targets have disappeared.

    python -m enginepool.engines.sglang.adaptations

It does not import upstream packages, so it runs on a CPU and with versions the engine refuses to start with. It exits
with status 1 if a target has disappeared and so must be ported. `table` lists the adaptations, `uses` finds all other
upstream names the code imports, `probes` and `source` inspect the installed packages.
"""
