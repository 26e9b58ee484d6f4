"""`python -m he_server`: the command line of the server alone."""

import sys

from he_server.cli import main

if __name__ == "__main__":
    sys.exit(main())
