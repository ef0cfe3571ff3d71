from prism_serving import main

if __name__ == "__main__":
    main()
