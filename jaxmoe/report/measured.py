"""A measured step beside its prediction, as tables and as one JSON document."""

import dataclasses
from typing import Any

from jaxmoe.config.deployment import Deployment
from jaxmoe.cost.estimate import SOURCE
from jaxmoe.cost.flops import useful_flops
from jaxmoe.report import units
from jaxmoe.report.step_time import predicted_s
from jaxmoe.report.table import Table
from jaxmoe.xla.measured import Measured

MEASURED = "measured"


def verdict(d: Deployment, m: Measured) -> str:
  """The median, and what it was measured on."""
  fake = ", fake devices that share this machine's cores" if m.platform == "cpu" and m.devices > 1 else ""
  return (
    f"{d.name}: {units.seconds(m.median_s)} a step on {m.devices} {m.device}{fake}: median of {len(m.seconds)},"
    f" quartiles {units.percent(m.spread)} apart ({MEASURED})"
  )


def tables(d: Deployment, m: Measured) -> list[Table]:
  tokens, predicted = d.job.batch * d.job.query_length, predicted_s(d)
  rows = [
    *([] if predicted is None else [(f"step on {d.cluster.name}", units.seconds(predicted), SOURCE)]),
    (f"step on {m.device}", units.seconds(m.median_s), MEASURED),
    ("fastest step", units.seconds(min(m.seconds)), MEASURED),
    ("slowest step", units.seconds(max(m.seconds)), MEASURED),
    ("tokens", units.rate(tokens / m.median_s, "tokens/s"), MEASURED),
    ("useful matmuls of a device", units.rate(useful_flops(d).total / m.median_s, "FLOP/s"), MEASURED),
    *((f"share of {kind}", units.percent(share), MEASURED) for kind, share in m.shares.items()),
  ]
  return [Table("Measured and predicted", ["what", "value", "source"], rows)]


def document(d: Deployment, m: Measured) -> dict[str, Any]:
  """Seconds; `predicted_s` is for the deployment's own cluster."""
  return {
    "deployment": d.name,
    "product": d.strategy.product,
    "sources": {"predicted_s": SOURCE, "seconds": MEASURED, "median_s": MEASURED, "shares": MEASURED},
    "predicted_s": predicted_s(d),
    "predicted_for": d.cluster.name,
    **dataclasses.asdict(m),
    "median_s": m.median_s,
    "spread": m.spread,
  }
