"""`python -m evenlens`, which is what torchrun starts."""

from evenlens.cli import main

if __name__ == "__main__":  # a process that is started from this one reads this file too
    main()
