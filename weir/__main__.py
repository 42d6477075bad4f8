"""`python -m weir` is `weir`: what the demo starts, so that it runs the Weir it came with."""

from weir.cli import main

main(prog_name="weir")
