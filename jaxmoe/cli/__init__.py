"""The command line."""

import os

# No verb that counts its time multiplies matrices in numpy, and OpenBLAS's threads spin through a start of a second.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
