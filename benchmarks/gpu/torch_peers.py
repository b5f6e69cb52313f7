"""Peers that run in torch, on the memory of the jax arrays."""

from typing import Any

import numpy as np
from peers import Absent, Launch, Operands, load, routing
from problems import Leg


def torch() -> Any:
  found = load("torch")
  if not found.cuda.is_available():
    raise Absent("torch sees no GPU")
  return found


def tensor(array):
  return torch().utils.dlpack.from_dlpack(array)


def ends(o: Operands):
  return torch().from_numpy(np.cumsum(np.asarray(o.sizes_E)).astype(np.int32)).cuda()


class TorchGroupedMm:
  def matmul(self):
    functional = torch().nn.functional
    if hasattr(functional, "grouped_mm"):
      return functional.grouped_mm
    if hasattr(torch(), "_grouped_mm"):
      return torch()._grouped_mm
    raise Absent(f"torch {torch().__version__} has no grouped_mm")

  def build(self, leg: Leg, o: Operands) -> Launch:
    mm, offs = self.matmul(), ends(o)
    x, y, gate, down = (tensor(array) for array in (o.x_ND, o.y_NF, o.gate_EDF, o.down_EFD))
    if leg == "up":
      gate_up = tensor(o.gate_up_EDF)
      return lambda: self.activate(mm(x, gate_up, offs=offs))
    if leg == "down":
      return lambda: mm(y, down, offs=offs)
    if leg == "input_gradient":
      return lambda: mm(y, gate.transpose(1, 2), offs=offs)
    if leg == "weight_gradient":
      return lambda: mm(x.t(), y, offs=offs)
    leaves = [t.detach().requires_grad_() for t in (x, tensor(o.gate_up_EDF), down)]

    def both_passes():
      out = mm(self.activate(mm(leaves[0], leaves[1], offs=offs)), leaves[2], offs=offs)
      return torch().autograd.grad(out, leaves, x)

    return both_passes

  def activate(self, gate_up):
    gate, up = gate_up.chunk(2, dim=-1)
    return torch().nn.functional.silu(gate) * up


class Liger:
  """Its layer also gathers rows by token and adds them up again, which ours is spared here; noted beside the result."""

  def build(self, leg: Leg, o: Operands) -> Launch:
    apply = load("liger_kernel.ops.fused_moe").LigerFusedMoEFunction.apply
    if leg != "layer":
      raise Absent("Liger fuses the whole layer")
    experts, scores = (torch().from_numpy(array).cuda() for array in routing(o))
    x = tensor(o.x_ND)[: o.problem.tokens].detach().requires_grad_()
    gate_up = tensor(o.gate_up_EDF).transpose(1, 2).contiguous().requires_grad_()
    down = tensor(o.down_EFD).transpose(1, 2).contiguous().requires_grad_()

    def both_passes():
      out = apply(x, gate_up, down, experts, scores)
      return torch().autograd.grad(out, [x, gate_up, down], x.detach())

    return both_passes


def synchronize(_) -> None:
  torch().cuda.synchronize()
