"""`python -m jaxmoe`."""

import sys

from jaxmoe.cli.main import main

sys.exit(main())
