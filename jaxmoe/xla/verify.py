"""Verify a deployment: compile its step in a child process and compare it with the plan."""

from collections.abc import Callable

from jaxmoe.config.deployment import Deployment
from jaxmoe.meshes.errors import UsageError
from jaxmoe.model.support import check_runnable
from jaxmoe.xla.child import run_in_child
from jaxmoe.xla.target import Target


def verify(deployment: Deployment, target: str, progress: Callable[[str], None] = lambda _: None):
  """The `Comparison` of `deployment` on `target` (`Target.parse`); this process does not need the devices.

  Raises:
    MissingError: the target's compiler or its devices are not here.
    UsageError: the target is unknown or of the wrong size, or the model cannot be run.
    ChildFailed: the compiler died.
  """
  try:
    check_runnable(deployment)
  except NotImplementedError as error:
    raise UsageError(str(error)) from error
  parsed = Target.parse(target)
  devices = parsed.fake_devices(deployment)
  compiled = run_in_child("jaxmoe.xla.compiled:compile_step", deployment, parsed, devices=devices, progress=progress)
  from jaxmoe.xla.compare import compare  # imports jaxlib, which nothing before the compile needs

  return compare(deployment, target, compiled)
