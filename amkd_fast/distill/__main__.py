"""``python -m amkd_fast.distill`` is ``amkd-distill``."""

import sys

from amkd_fast.distill.cli import main

if __name__ == "__main__":
    sys.exit(main())
