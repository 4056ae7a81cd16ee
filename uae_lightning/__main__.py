"""`python -m uae_lightning` is `uae`."""

import sys

from uae_lightning.cli import main

sys.exit(main())
