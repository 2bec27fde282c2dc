"""`python -m tclx.cli` is `tclx`."""

from tclx.cli import main

main()
