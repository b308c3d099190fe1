"""`python -m privmem.cluster` is `privmem`."""

import sys

from privmem.cluster.cli import main

if __name__ == "__main__":
    sys.exit(main())
