"""`python -m minunet` is the command `minunet`."""

import sys

from minunet.cli import main

sys.exit(main())
