"""`python -m cones.cli`."""

from cones.cli.main import main

if __name__ == "__main__":
    main()
