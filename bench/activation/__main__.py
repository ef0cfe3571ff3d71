from bench.activation.command import main

if __name__ == "__main__":
    main()
