"""Who is measured on what: ours and the bound first, then peers, those that goals name before the others."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import peers
import torch_peers
from goals import DENSE, LIGER, OURS
from problems import GOAL_SECTIONS, Leg, Problem, Section

from jaxmoe.kernels.hopper.device import Device

MOSAIC = "jax ragged_dot_mgpu"
FIRST_PEERS = ("tokamax mosaic", "tokamax triton", LIGER)  # goals name them
PEERS = (*FIRST_PEERS, "torch grouped_mm", MOSAIC, "jax.lax.ragged_dot", "tokamax xla")
SILENCE_S = 75.0  # start of a process, or building, checking and timing a row: longer means that it hangs
TUNES_ITSELF_S = {LIGER: 180.0, "tokamax triton": 120.0}


class Case(NamedTuple):
  """A row of the results to be."""

  section: str
  problem: Problem
  leg: Leg
  who: str

  @property
  def label(self) -> dict[str, Any]:
    p = self.problem
    return {"section": self.section, "model": p.model, "tokens": p.tokens, "skew": p.skew, "leg": self.leg,
            "who": self.who}  # fmt: skip


def everyone(device: Device | None, ragged_dot: str) -> dict[str, tuple[Any, Any]]:
  """Name -> (peer, how to wait for it)."""
  ready, where = jax.block_until_ready, "cpu" if device else "cuda"
  return {
    OURS: (peers.Ours(device), ready),
    DENSE: (peers.Dense(), ready),
    "tokamax mosaic": (peers.Tokamax("mosaic_gpu"), ready),
    "tokamax triton": (peers.Tokamax("triton"), ready),
    LIGER: (torch_peers.Liger(where), torch_peers.synchronize),
    "torch grouped_mm": (torch_peers.TorchGroupedMm(where), torch_peers.synchronize),
    MOSAIC: (peers.JaxMosaic(), ready),
    "jax.lax.ragged_dot": (peers.RaggedDot(ragged_dot), ready),
    "tokamax xla": (peers.Tokamax("xla", ragged_dot), ready),
  }


def of_ours(sections: Iterable[Section]) -> list[Case]:
  """Ours on every leg of a problem, then the bound; what two sections share, once."""
  cases = [
    Case(section.name, problem, leg, who)
    for section in sections
    for problem in section.problems
    for who in (OURS, DENSE)
    if who == OURS or not section.alone
    for leg in section.legs
    if (leg, who) != ("layer", DENSE)
  ]
  first: dict[tuple, Case] = {}
  for case in cases:
    first.setdefault(case[1:], case)
  return list(first.values())


def of_peers(sections: Iterable[Section], without: Iterable[str] = ()) -> list[Case]:
  """What decides goals first; last what is known to hang, because each hang costs a process and its silence.

  `without`: names of peers, or how they begin.
  """
  cases = [
    Case(section.name, problem, leg, who)
    for section in sections
    if not section.alone
    for problem in section.problems
    for who in PEERS
    if not any(who.startswith(name) for name in without)
    for leg in section.legs
    if who != LIGER or leg == "layer"
  ]
  return sorted(cases, key=_urgency)  # stable: a problem's cases stay together


def _urgency(case: Case) -> tuple[bool, bool, bool]:
  suspected = case.who == MOSAIC and case.leg == "weight_gradient"
  return suspected, case.section not in GOAL_SECTIONS, case.who not in FIRST_PEERS


def alike(cases: list[Case], index: int) -> list[int]:
  """Those of the same peer and leg: they would hang or crash as this one did."""
  return [i for i, case in enumerate(cases) if (case.who, case.leg) == (cases[index].who, cases[index].leg)]
