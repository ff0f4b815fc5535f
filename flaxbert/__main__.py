"""`python -m flaxbert` is the command `flaxbert`."""

import sys

from flaxbert.cli import main

sys.exit(main())
