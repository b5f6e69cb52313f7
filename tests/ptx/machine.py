"""Blocks of three warpgroups, interleaved at random, with asynchronous work at the times that are asked for."""

import random
from typing import Literal

import numpy as np

from ptx import asynchronous, instructions
from ptx.host import Launch
from ptx.lanes import COUNT
from ptx.objection import Objection, Unmodelled
from ptx.program import Program
from ptx.shared_memory import SharedMemory
from ptx.warpgroup import Warpgroup

Timing = Literal["late", "early", "random"]
TABLES = (asynchronous, instructions)  # imported for what they add to the table of `warpgroup`
MOST_STEPS = 1_000_000
STARVED_FOR = 200  # steps, at most


def run(launch: Launch, program: Program, operands: list[np.ndarray], results: list[np.ndarray], timing: Timing, seed):
  """Fills the results, each element of which is written exactly once."""
  if launch.threads % COUNT:
    raise Unmodelled(f"{launch.threads} threads, no whole warpgroups")
  memory = [np.ascontiguousarray(array).reshape(-1).view(np.uint8) for array in operands]
  memory += [result.reshape(-1).view(np.uint8) for result in results]
  written = {len(operands) + i: np.zeros(result.size, int) for i, result in enumerate(results)}
  chance = random.Random(seed)
  for number in range(launch.blocks):
    Block(launch, program, number, memory, written, timing, chance).run()
  for count in written.values():
    if (count != 1).any():
      raise Objection(f"elements of a result are written {sorted({*count.tolist()})} times")


class Block:
  """`copies` are under way to shared memory; other work is its warpgroup's."""

  def __init__(self, launch: Launch, program: Program, number: int, memory, written, timing: Timing, chance):
    self.launch, self.program, self.number = launch, program, number
    self.memory, self.written, self.timing, self.chance = memory, written, timing, chance
    self.shared = SharedMemory(launch.shared_bytes)
    self.copies: list = []
    self.owners: dict[int, int] = {}
    self.arrived = 0
    self.groups = [Warpgroup(i, self) for i in range(launch.threads // COUNT)]
    self.starved, self.starved_for = None, 0

  def run(self) -> None:
    runs = {group: group.run() for group in self.groups}
    waits = dict.fromkeys(self.groups)
    for _ in range(MOST_STEPS):
      if not runs:
        return self._check_end()
      ready = [group for group in runs if waits[group] is None or waits[group]()]
      chosen = self._choose(ready)
      if not isinstance(chosen, Warpgroup):
        chosen()
        continue
      try:
        waits[chosen] = next(runs[chosen])
      except StopIteration:
        del runs[chosen]
    raise Objection(f"no end after {MOST_STEPS} steps")

  def start(self, copy) -> None:
    self.copies.append(copy)
    if self.timing == "early":
      self._finish_a_copy()

  def arrive(self):
    """At the barrier of the whole block: the condition to wait for."""
    self.arrived += 1
    all_here = -(-self.arrived // len(self.groups)) * len(self.groups)
    return lambda: self.arrived >= all_here

  def words(self, argument: int | None) -> np.ndarray:
    """Device memory, which a program sees as an address's number of an argument, from 1 on."""
    if argument is None or not 1 <= argument <= len(self.memory):
      raise Objection(f"no argument {argument}")
    return self.memory[argument - 1].view(np.uint32)

  def _choose(self, ready: list):
    """A warpgroup or a piece of asynchronous work; now and then one of them is left out for a while."""
    work = self._work() if self.timing == "random" or not ready else []
    if not ready and not work:
      doing = "; ".join(f"warpgroup {group.number} at {group.doing}" for group in self.groups)
      raise Objection(f"deadlock in block {self.number}: {doing}")
    if not self.starved_for:
      self.starved = self.chance.choice([None, "work", *self.groups])
      self.starved_for = self.chance.randrange(1, STARVED_FOR)
    self.starved_for -= 1
    fed = [group for group in ready if group is not self.starved] + (work if self.starved != "work" else [])
    return self.chance.choice(fed or ready + work)

  def _work(self) -> list:
    """What may be done next. As late as can be, only copies: all else is done when it is waited for."""
    work = [self._finish_a_copy] if self.copies else []
    if self.timing == "random":
      queues = [queue for group in self.groups for queue in (group.multiplications, group.stores)]
      work += [queue.step for queue in queues if queue.undone]
    return work

  def _finish_a_copy(self) -> None:
    self.copies.pop(self.chance.randrange(len(self.copies))).finish()

  def _check_end(self) -> None:
    if self.copies or any(group.stores.under_way() or group.multiplications.under_way() for group in self.groups):
      raise Objection("asynchronous work is under way at the end")
    if any(barrier.pending != barrier.count or barrier.bytes for barrier in self.shared.barriers.values()):
      raise Objection("a phase of an mbarrier has begun at the end")
