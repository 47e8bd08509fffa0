"""`python -m carequorum` is the command `carequorum`."""

import sys

from carequorum.cli import main

sys.exit(main())
