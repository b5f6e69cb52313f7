"""The one exception for a caller's mistake; the command line turns it into exit code 2."""


class UsageError(ValueError):
  """What was expected, what came instead and what to do, in one sentence."""
