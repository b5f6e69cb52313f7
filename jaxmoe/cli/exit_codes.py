"""What the command line's exit status means."""

import enum


class ExitCode(enum.IntEnum):
  DONE = 0
  INTERNAL_ERROR = 1
  USAGE = 2  # or configuration, or a process that was ended for want of time or memory
  NO_PLAN = 3  # nothing feasible; the message says why and what fits nearest
  DISAGREES = 4  # the compiler disagrees with the plan beyond tolerance, or it does not fit
  MISSING = 5  # an extra or a device; the message holds the exact install line
