"""What an error says to a user, and with which code the command ends."""

import errno

from jaxmoe.cli.exit_codes import ExitCode
from jaxmoe.config.files import shown
from jaxmoe.meshes.errors import MissingError, UsageError
from jaxmoe.xla.child import ChildFailed, ChildStopped
from jaxmoe.xla.failed import CompileFailed
from jaxmoe.xla.unknown import Unknown

# How a system says that a file or stdout cannot be written, which is no fault of ours.
REFUSALS = (errno.EACCES, errno.EBADF, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ENOSPC, errno.EROFS)

NOT_COUNTED = (
  "cannot count what the compiler made of this program, and nothing unknown counts as zero; please report it with this"
  " message and the versions of jax, jaxlib and the target's compiler"
)

# Of several deployments' codes, the one that stands last here is the command's: no answer is worse than a bad one.
_BAD_TO_WORST = (
  ExitCode.DONE, ExitCode.NO_PLAN, ExitCode.DISAGREES, ExitCode.USAGE, ExitCode.MISSING, ExitCode.INTERNAL_ERROR
)  # fmt: skip


def worst(codes: list[ExitCode]) -> ExitCode:
  """The exit code of several deployments together; done if there are none."""
  return max(codes, key=_BAD_TO_WORST.index, default=ExitCode.DONE)


def message_and_code(error: Exception) -> tuple[str, ExitCode]:
  """What a user reads of an error, never a traceback, and the exit code."""
  match error:
    case UsageError():
      return str(error), ExitCode.USAGE
    case MissingError():
      return str(error), ExitCode.MISSING
    case ChildStopped():  # limits are options or this machine's; the compiler's last lines say what it was at
      return str(error), ExitCode.USAGE
    case CompileFailed():
      return f"the compiler refuses the program: {error}", ExitCode.DISAGREES
    case Unknown():
      return f"{NOT_COUNTED}: {error}", ExitCode.INTERNAL_ERROR
    case OSError() if error.errno in REFUSALS:
      return f"cannot write or read: {shown(error)}; is there room, and the right to?", ExitCode.USAGE
  # A child's message is its last lines, which say what happened.
  what = str(error) if isinstance(error, ChildFailed) else f"{type(error).__name__}: {shown(error)}"
  return f"internal error: {what}; please report it with the output of JAXMOE_DEBUG=1", ExitCode.INTERNAL_ERROR
