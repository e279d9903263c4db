"""`python -m rrmsdk`."""

from rrmsdk.cli import main

main()
