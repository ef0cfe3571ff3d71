"""`python -m bench.traces`, an alias of `python -m simulator.traces`."""

from simulator.traces.__main__ import main

if __name__ == "__main__":
    main()
