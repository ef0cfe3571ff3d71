"""The rank: the process that runs SGLang's Scheduler, on whatever device there is."""
