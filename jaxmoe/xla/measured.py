"""What a clock says of a step: plain data, which needs no jax to read."""

import dataclasses
import statistics


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
  """One step, run and timed.

  Attributes:
    device: kind of the devices, in jax's words.
    platform: `cpu`, `gpu` or `tpu`.
    seconds: of every timed step, in order; warm-up steps are not among them.
    warm_up: steps before the first timed one.
    shares: of the devices' time in a profiled step: `compute`, `collective` and `idle`; empty if no profile named
      the program's instructions.
    versions: of jax and jaxlib.
    peak_bytes: most that was in use on one device since the process began; None where the platform does not say.
  """

  device: str
  platform: str
  devices: int
  seconds: tuple[float, ...]
  warm_up: int
  shares: dict[str, float]
  versions: dict[str, str]
  peak_bytes: int | None = None

  @property
  def median_s(self) -> float:
    return statistics.median(self.seconds)

  @property
  def spread(self) -> float:
    """Distance of the quartiles over the median."""
    if len(self.seconds) < 4:
      return (max(self.seconds) - min(self.seconds)) / self.median_s
    low, _, high = statistics.quantiles(self.seconds, n=4)
    return (high - low) / self.median_s
