"""The exceptions that are not our own mistakes; the command line gives each its exit code."""


class UsageError(ValueError):
  """A caller's mistake (exit code 2): what was expected, what came instead and what to do, in one sentence."""


class MissingError(RuntimeError):
  """A device or an optional dependency that is not here (exit code 5), with what to install or set."""
