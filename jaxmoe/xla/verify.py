"""Verify a deployment: compile its step in a child process and compare it with the plan."""

import dataclasses
import time
from collections.abc import Callable

from jaxmoe.config.deployment import Deployment
from jaxmoe.meshes.errors import UsageError
from jaxmoe.model.support import check_runnable
from jaxmoe.xla import cache
from jaxmoe.xla.child import run_in_child
from jaxmoe.xla.measured import Measured
from jaxmoe.xla.target import Target

IN_ALL = "in all"  # among the seconds of phases: from the start of the process that compiles to its result


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Options:
  """How to compile.

  Attributes:
    timeout_s, memory_limit_bytes: of the process that compiles.
    cached: whether an earlier result will do, and this one is kept.
  """

  timeout_s: float = 900.0
  memory_limit_bytes: float = 6e9
  cached: bool = True


def verify(
  deployment: Deployment,
  target: str,
  progress: Callable[[str], None] = lambda _: None,
  options: Options = Options(),
):
  """The `Comparison` of `deployment` on `target` (`Target.parse`); this process does not need the devices.

  Raises:
    MissingError: the target's compiler or its devices are not here.
    UsageError: the target is unknown or of the wrong size, or the model cannot be run.
    CompileFailed: the compiler refuses the program.
    Unknown: it compiles to something that cannot be counted.
    ChildStopped: it took more than the options allow, or somebody or the system ended it.
    ChildFailed: it died of itself.
  """
  _check(deployment)
  parsed = Target.parse(target).on(deployment)
  devices = parsed.fake_devices(deployment)
  parsed.require()
  entry = cache.key(deployment, parsed) if options.cached and not parsed.local else None
  found = cache.load(entry) if entry else None
  if found:
    progress("found the result of an earlier compile")
  compiled = found or _compiled(deployment, parsed, devices, progress, options)
  if entry and not found:
    cache.store(entry, compiled)
  from jaxmoe.xla.compare import compare  # imports jaxlib, which nothing before the compile needs

  return dataclasses.replace(compare(deployment, str(parsed), compiled), cached=found is not None)


def _compiled(
  deployment: Deployment, target: Target, devices: int | None, progress: Callable[[str], None], options: Options
):
  start = time.perf_counter()
  compiled = run_in_child(
    "jaxmoe.xla.compiled:compile_step",
    deployment,
    target,
    devices=devices,
    progress=progress,
    timeout_s=options.timeout_s,
    memory_limit_bytes=options.memory_limit_bytes,
    environment=target.environment,
    flags=target.flags,
  )
  return dataclasses.replace(compiled, seconds={**compiled.seconds, IN_ALL: time.perf_counter() - start})


def measure(
  deployment: Deployment,
  target: str,
  steps: int,
  progress: Callable[[str], None] = lambda _: None,
  *,
  timeout_s: float = 900.0,
) -> Measured:
  """`steps` of the deployment's step, run and timed on `local` devices or fake ones (`cpu`); raises as `verify`."""
  _check(deployment)
  parsed = Target.parse(target)
  where = {"devices": parsed.fake_devices(deployment), "progress": progress, "to_run": True, "timeout_s": timeout_s}
  return run_in_child("jaxmoe.xla.measure:measure_step", deployment, parsed, steps, **where)


def _check(deployment: Deployment) -> None:
  try:
    check_runnable(deployment)
  except NotImplementedError as error:
    raise UsageError(str(error)) from error
