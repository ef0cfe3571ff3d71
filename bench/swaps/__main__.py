from bench.swaps.command import main

if __name__ == "__main__":
    main()
