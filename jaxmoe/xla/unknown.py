"""Errors for what a program holds and nobody can count: it might hide work, so it never counts as zero."""


class Unknown(Exception):
  """The message says what was met, where, and what makes it known; the command line shows it as it is."""


class UnknownOperation(Unknown, NotImplementedError):
  """An operation that the walk does not know, or a kernel whose work nobody declares."""


class UnknownTripCount(Unknown, ValueError):
  """A loop whose iterations cannot be known from the program."""


class WrongDeclaration(Unknown, ValueError):
  """A scope that is to declare the work of one loop or kernel, and cannot: its numbers, or that several stand in it."""
