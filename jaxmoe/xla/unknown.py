"""What a compiled program may hold that nobody can count. It is an error, never zero: it might hide work."""


class Unknown(Exception):
  """What was met, where, and what makes it known: one message, which the command line shows as it is."""


class UnknownOperation(Unknown, NotImplementedError):
  """An operation that the walk does not know, or a kernel whose work nobody declares."""


class UnknownTripCount(Unknown, ValueError):
  """A loop whose iterations cannot be known from the program."""
