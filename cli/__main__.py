"""`python -m trimtab.cli`: the `trimtab` command, for where the script is not on PATH."""

import sys

from trimtab.cli.app import main

if __name__ == "__main__":
    sys.exit(main())
