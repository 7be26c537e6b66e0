"""`python -m evenlens`, which is what torchrun starts."""

from evenlens.cli import main

main()
