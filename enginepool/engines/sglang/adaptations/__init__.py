"""Which adaptations to upstream the installed versions still need, and which of their targets are gone.

    python -m enginepool.engines.sglang.adaptations

It imports nothing of upstream, so it runs on a CPU, and with a version that no template starts with. It exits with 1
if a target is gone: that is what is to be ported. `table` lists the adaptations, `uses` finds what the code imports
otherwise, `probes` and `source` look at what is installed.
"""
