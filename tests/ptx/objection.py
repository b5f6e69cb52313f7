"""The two ways in which an execution ends early."""


class Objection(Exception):
  """The program does what the instruction set forbids or leaves undefined, or it never ends."""


class Unmodelled(Exception):
  """The program may be right, but the emulator knows no such operation, modifier or layout."""
