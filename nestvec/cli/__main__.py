"""`python -m nestvec.cli`: the same as the `nestvec` script."""

from nestvec.cli import main

if __name__ == "__main__":
    main()
