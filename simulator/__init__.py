"""The simulator: runs the gateway's scheduler in virtual time, on models of workers, engines and links."""
