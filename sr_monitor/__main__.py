"""`python -m sr_monitor` is the command `sr-monitor`."""

import sys

from sr_monitor.cli import main

sys.exit(main())
