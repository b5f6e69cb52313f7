"""A page's roofline: what the parts of a layer could reach between the peak and the memory's bandwidth."""

import dataclasses
import math
from collections.abc import Sequence

from jaxmoe.config.deployment import Deployment
from jaxmoe.cost.estimate import SOURCE, Estimate
from jaxmoe.cost.flops import balanced_rows
from jaxmoe.cost.layer import Operation, attention_operations, dense_operations, expert_operations
from jaxmoe.cost.passes import Device, peak_flops_per_s
from jaxmoe.report import units
from jaxmoe.report.html_parts import (
  Number,
  Section,
  of_bytes,
  of_count,
  of_flops,
  of_rate,
  of_seconds,
  percent,
)
from jaxmoe.report.table import Table


@dataclasses.dataclass(frozen=True, slots=True)
class Part:
  """Forward of one part of a layer, for one microbatch on one device.

  Attributes:
    seconds: the longer of its matmuls and its memory traffic.
  """

  name: str
  flops: float
  bytes: float
  seconds: float

  @property
  def intensity(self) -> float:
    """FLOPs a byte."""
    return self.flops / self.bytes


@dataclasses.dataclass(frozen=True, slots=True)
class Roofline:
  """Lines and points in percent of the figure, from its top left corner.

  Attributes:
    roofs: name, source, and the corners of slope and peak.
    points: letter, part, place, and how high its letter stands over the bottom, in letters.
    x_ticks, y_ticks: place and text of each power of ten.
  """

  title: str
  roofs: Sequence[tuple[str, Sequence[tuple[float, float]]]]
  points: Sequence[tuple[str, str, float, float, int]]
  x_ticks: Sequence[tuple[float, str]]
  y_ticks: Sequence[tuple[float, str]]
  kind: str = "roofline"


def roofline(e: Estimate) -> Section:
  """Every part of a layer that multiplies, under the datasheet's roof and under the one that is reached."""
  d = e.deployment
  found = parts(d)
  multiplying = sorted((part for part in found if part.flops), key=lambda part: part.intensity)
  letters = {part.name: "ABCDEFGHIJ"[place] for place, part in enumerate(multiplying)}
  rows = [_row(part, letters.get(part.name, "-"), d) for part in [*multiplying, *(p for p in found if not p.flops)]]
  headers = ["", "part", "FLOPs", "bytes", "FLOPs a byte", "rate", "time", "bound by", "source"]
  text = (
    "Forward of each part of a layer, for one microbatch on one device. Points stand where the formulas put them, on or"
    " under the roof that is reached; the compiler and the clock have no part in this figure."
  )
  return Section(
    "roofline",
    "Roofline",
    [text],
    [_figure(multiplying, letters, d)],
    [Table("Parts of a layer", headers, rows)],
  )


def parts(d: Deployment) -> list[Part]:
  """Of all kinds of layers that the model has, by name."""
  device = Device(d.cluster, d.job.precision)
  found: dict[str, Part] = {}
  for op in (*attention_operations(d), *expert_operations(d, balanced_rows(d)), *dense_operations(d)):
    before = found.get(op.part, Part(op.part, 0.0, 0.0, 0.0))
    found[op.part] = _sum(before, op, float(device.operation_s(op)))
  return list(found.values())


def _sum(part: Part, op: Operation, seconds: float) -> Part:
  return Part(part.name, part.flops + float(op.flops), part.bytes + float(op.bytes), part.seconds + seconds)


def _row(part: Part, letter: str, d: Deployment) -> tuple[str, ...]:
  traffic_s = part.bytes / Device(d.cluster, d.job.precision).bytes_per_s
  bound = "memory" if math.isclose(part.seconds, traffic_s) else "matmuls"
  intensity = Number(f"{part.intensity:.3g}", part.intensity)
  rate = of_rate(part.flops / part.seconds if part.seconds else 0.0, "FLOP/s")
  measures = (of_flops(part.flops), of_bytes(part.bytes), intensity, rate, of_seconds(part.seconds))
  return (letter, part.name, *measures, bound, SOURCE)


@dataclasses.dataclass(frozen=True, slots=True)
class _Scale:
  """Powers of ten at the edges of the figure: FLOPs a byte from `first` to `last`, FLOP/s from `low` to `high`."""

  first: int
  last: int
  low: int
  high: int

  def x(self, intensity: float) -> float:
    return percent(math.log10(intensity) - self.first, self.last - self.first)

  def y(self, flops_per_s: float) -> float:
    return percent(self.high - math.log10(flops_per_s), self.high - self.low)

  def roof(self, flops_per_s: float, bytes_per_s: float) -> list[tuple[float, float]]:
    """From the edge up the slope, then along the peak."""
    start = max(10.0**self.first, 10.0**self.low / bytes_per_s)
    ridge = flops_per_s / bytes_per_s
    rates = {start: start * bytes_per_s, ridge: flops_per_s, 10.0**self.last: flops_per_s}
    return [(self.x(intensity), self.y(rate)) for intensity, rate in rates.items()]


def _scale(points: Sequence[Part], peak: float, bandwidth: float) -> _Scale:
  """Room for every point and a decade about the ridge."""
  intensities = [part.intensity for part in points]
  rates = [part.flops / part.seconds for part in points]
  ridge = peak / bandwidth
  return _Scale(
    first=math.floor(math.log10(min([*intensities, ridge / 10]))),
    last=math.ceil(math.log10(max([*intensities, ridge * 10]))),
    low=math.floor(math.log10(min([*rates, peak / 100]))),
    high=math.ceil(math.log10(max([*rates, peak]) * 1.5)),
  )


def _figure(points: Sequence[Part], letters: dict[str, str], d: Deployment) -> Roofline:
  cluster, dtype = d.cluster, d.job.precision.compute
  peak, bandwidth = peak_flops_per_s(cluster, dtype), cluster.memory_bandwidth_bytes_per_s
  reached = (peak * cluster.matmul_efficiency, bandwidth * cluster.memory_efficiency)
  scale = _scale(points, peak, bandwidth)
  names = [f"{units.rate(flops, 'FLOP/s')}, {units.rate(size, 'B/s')}" for flops, size in ((peak, bandwidth), reached)]
  return Roofline(
    title=f"{dtype}: FLOP/s over FLOPs a byte, both axes logarithmic",
    roofs=[
      (f"peak {names[0]} (document)", scale.roof(peak, bandwidth)),
      (f"reached {names[1]} ({SOURCE})", scale.roof(*reached)),
    ],
    points=[
      (letters[part.name], part.name, scale.x(part.intensity), scale.y(part.flops / part.seconds), place % 4)
      for place, part in enumerate(points)
    ],
    x_ticks=[(scale.x(10.0**power), of_count(10.0**power)) for power in range(scale.first + 1, scale.last)],
    y_ticks=[(scale.y(10.0**power), units.rate(10.0**power, "FLOP/s")) for power in range(scale.low + 1, scale.high)],
  )
