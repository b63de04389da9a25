"""`python -m hpt_trl`, the form that launchers of several processes start."""

import sys

from hpt_trl.cli import main

sys.exit(main())
