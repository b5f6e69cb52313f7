"""Peers that run in torch, on the memory of the jax arrays."""

from typing import Any

import jax
import numpy as np
from operands import Operands, routing
from peers import Absent, Launch, load
from problems import Leg


def torch(where: str = "cuda") -> Any:
  found = load("torch")
  if where == "cuda" and not found.cuda.is_available():
    raise Absent("torch sees no GPU")
  return found


def tensor(array):
  return load("torch").utils.dlpack.from_dlpack(array)


def array(tensor) -> jax.Array:
  return jax.dlpack.from_dlpack(tensor.detach().contiguous())


class TorchGroupedMm:
  """Legs from torch's grouped matmul; `where` is "cpu" in a dry run."""

  def __init__(self, where: str = "cuda"):
    self.where = where

  def matmul(self):
    found = torch(self.where)
    functional = found.nn.functional
    if hasattr(functional, "grouped_mm"):
      return functional.grouped_mm
    if hasattr(found, "_grouped_mm"):
      return found._grouped_mm
    raise Absent(f"torch {found.__version__} has no grouped_mm")

  def ends(self, o: Operands):
    return load("torch").from_numpy(np.cumsum(np.asarray(o.sizes_E)).astype(np.int32)).to(self.where)

  def build(self, leg: Leg, o: Operands) -> Launch:
    if leg == "down_fp8":
      raise Absent("no scales of FP8 weights")
    mm, offs = self.matmul(), self.ends(o)
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
      return out, *load("torch").autograd.grad(out, leaves, x)

    return both_passes

  def activate(self, gate_up):
    gate, up = gate_up.chunk(2, dim=-1)
    return load("torch").nn.functional.silu(gate) * up

  def arrays(self, result) -> list[jax.Array]:
    return [array(each) for each in (result if isinstance(result, tuple) else (result,))]


class Liger:
  """Its layer also gathers rows by token and adds them up again, which ours is spared here."""

  note = "its time includes gathering rows by token and adding them up again; ours does neither"
  by_token = True

  def __init__(self, where: str = "cuda"):
    self.where = where

  def build(self, leg: Leg, o: Operands) -> Launch:
    if leg != "layer":
      raise Absent("Liger fuses the whole layer")
    found = torch(self.where)
    apply = load("liger_kernel.ops.fused_moe").LigerFusedMoEFunction.apply
    experts, scores = (found.from_numpy(array).to(self.where) for array in routing(o))
    x = tensor(o.x_ND)[: o.problem.tokens].detach().requires_grad_()
    gate_up = tensor(o.gate_up_EDF).transpose(1, 2).contiguous().requires_grad_()
    down = tensor(o.down_EFD).transpose(1, 2).contiguous().requires_grad_()

    def both_passes():
      out = apply(x, gate_up, down, experts, scores)
      return out, *found.autograd.grad(out, [x, gate_up, down], x.detach())

    return both_passes

  def arrays(self, result) -> list[jax.Array]:
    """Its weights, and so their gradients, lie the other way round."""
    out, dx, *d_weights = result
    return [array(each) for each in (out, dx, *(d.transpose(1, 2) for d in d_weights))]


def synchronize(_) -> None:
  """Wait for the GPU, if there is one."""
  if load("torch").cuda.is_available():
    load("torch").cuda.synchronize()
