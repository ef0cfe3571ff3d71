"""The simulator: the gateway's scheduler, driven in virtual time over models of workers, engines and links."""
