"""A deployment beside the claims of its document: what rules of the audit compute with."""

import dataclasses
import functools
import math
import re
from collections.abc import Sequence

from jaxmoe.config.deployment import Claim, Deployment
from jaxmoe.config.job import ITEM_BYTES
from jaxmoe.cost.estimate import Estimate, estimate
from jaxmoe.cost.passes import peak_flops_per_s
from jaxmoe.meshes.placement import Placement, place
from jaxmoe.meshes.strategy import Strategy
from jaxmoe.planner.amount import Amount, exact, shown

# Units of what is measured or calculated, and so rounded where printed. Everything else is counted, and exact.
ROUNDED_UNITS = {
  "bytes", "bytes/s", "FLOP", "FLOP/s", "s", "share", "times", "parameters", "batches/s", "sequences/s", "tokens/s",
  "tokens/ms",
}  # fmt: skip

PARALLEL_SIZES = {
  "expert_parallel_size": "EP", "pipeline_parallel_size": "PP", "tensor_parallel_size": "TP",
  "sequence_parallel_size": "SP", "data_parallel_size": "DP",
}  # fmt: skip
_LABELS = {**PARALLEL_SIZES, "earlier_expert_parallel_size": "EP"}

_PREFIX = {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "m": 1e-3, "μ": 1e-6}
_BINARY_POWER = {"k": 1, "K": 1, "M": 2, "G": 3, "T": 4, "P": 5}
_NUMBER = r"(?<![\d.])(?P<digits>\d{1,3}(?:,\d{3})+|\d+(?:\.\d+)?)"
_UNIT = r"(?:\s?(?:(?P<percent>%)|(?P<prefix>[kKMGTPmμ]?)(?:B|Flops|FLOPS|FLOps|Bps|s)\b))?"
_PRINTED = re.compile(_NUMBER + _UNIT)
_BILLIONS = re.compile(_NUMBER + r"\s?(?P<billion>B)\b")


class Unsaid(LookupError):
  """The document does not claim this."""


@dataclasses.dataclass(frozen=True, slots=True)
class Printed:
  """How a quote prints a number: half a unit of its last digit, and its prefix (`M` of MB)."""

  half: float
  prefix: str


def printed(claim: Claim) -> Printed:
  """The precision of a claim: rounding as written in its quote; exact if counted, set, or not in its quote."""
  for found in (*_BILLIONS.finditer(claim.quote), *_PRINTED.finditer(claim.quote)):
    parts, digits = found.groupdict(), found["digits"].replace(",", "")
    prefix = parts.get("prefix") or ""
    scale = 1e9 if parts.get("billion") else 0.01 if parts.get("percent") else _PREFIX[prefix]
    if math.isclose(float(digits) * scale, claim.value, rel_tol=1e-9):
      return Printed(0.0 if _is_exact(claim, prefix) else 0.5 * scale * 10.0 ** -len(digits.partition(".")[2]), prefix)
  return Printed(0.0, "")


def _is_exact(claim: Claim, prefix: str) -> bool:
  """Counted, or a limit, which is set and not measured."""
  counted = claim.unit not in ROUNDED_UNITS or (claim.unit == "bytes" and not prefix)
  return counted or claim.name.startswith("required_") or claim.name.endswith(("_maximum", "_minimum"))


class Book:
  """Claims as amounts, and the same quantities as the model, strategy, job and cluster have them.

  `binary` reads kB, MB, GB, TB and PB of the document as powers of 1024: a claim may mean either.
  """

  def __init__(self, deployment: Deployment, *, binary: bool = False):
    self.d = deployment
    self.binary = binary
    self.claims = {claim.name: claim for claim in deployment.claims}

  def said(self, name: str) -> Amount:
    """The document's number.

    Raises:
      Unsaid: it has none of this name.
    """
    if name not in self.claims:
      raise Unsaid(name)
    claim = self.claims[name]
    how = printed(claim)
    power = _BINARY_POWER.get(how.prefix, 0) if claim.unit == "bytes" and self.binary else 0
    scale = 1.024**power
    text = " ".join(filter(None, (_LABELS.get(name), shown(claim.value, claim.unit))))
    return Amount(claim.value * scale, (claim.value - how.half) * scale, (claim.value + how.half) * scale, text)

  def says(self, name: str) -> bool:
    return name in self.claims

  def dim(self, name: str, unit: str = "") -> Amount:
    """A dimension of the model: `dim("num_layers", "layers")`."""
    return exact(number := getattr(self.d.model, name), shown(number, unit))

  @property
  def devices(self) -> Amount:
    return exact(self.d.strategy.devices, shown(self.d.strategy.devices, "devices"))

  @property
  def peak(self) -> Amount:
    peak = peak_flops_per_s(self.d.cluster, self.d.job.precision.compute)
    return exact(peak, shown(peak, "FLOP/s"))

  @property
  def weight_bytes(self) -> Amount:
    """Bytes of a weight as a matmul reads it: the narrower of what is stored and what is computed with."""
    precision = self.d.job.precision
    item = min(ITEM_BYTES[precision.weights], ITEM_BYTES[precision.compute])
    return exact(item, shown(item, "bytes"))

  @property
  def step(self) -> Amount:
    return seconds("step", self.estimate)

  @functools.cached_property
  def estimate(self) -> Estimate:
    return estimate(self.d)

  @functools.cached_property
  def prefill(self) -> Estimate:
    """The same batch at its full length as a prompt, whatever the job is."""
    job = dataclasses.replace(self.d.job, kind="prefill", remat="none", schedule="gpipe", chunks=1, zero=0)
    return estimate(dataclasses.replace(self.d, job=job))

  @functools.cached_property
  def one_device(self) -> Estimate:
    """The same job on one of the cluster's devices."""
    job = dataclasses.replace(self.d.job, microbatches=1, zero=0)
    return estimate(dataclasses.replace(self.d, strategy=Strategy(), job=job))

  @functools.cached_property
  def places(self) -> Sequence[Placement]:
    model = self.d.model
    return place(self.d.strategy, model.num_layers, model.num_experts, chunks=self.d.job.chunks)

  @property
  def batch_flops(self) -> Amount:
    """What the model needs for the global batch; nothing idle, padded or recomputed."""
    flops = self.estimate.useful.total * self.d.strategy.devices
    return exact(flops, f"{shown(flops, 'FLOP')} a batch")


def seconds(name: str, e: Estimate) -> Amount:
  return exact(e.time.total_s, f"{name} {shown(e.time.total_s, 's')}")
