"""The rank: the process that runs SGLang's Scheduler, on a CPU or a GPU."""
