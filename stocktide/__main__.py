"""`python -m stocktide`."""

from stocktide.cli import main

main()
