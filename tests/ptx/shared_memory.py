"""Shared memory of one block: its bytes, which of them asynchronous work may not see yet, and its barriers."""

import numpy as np

from ptx.lanes import LANE, Lanes
from ptx.objection import Objection, Unmodelled

BASE = 1024  # address of a kernel's own shared memory: below lies what the system keeps
MOST = 227 * 1024  # bytes of one block
POISON = 0xFF  # of bytes that nothing wrote: NaN in every format
# Of each word: may be read by anything, holds an mbarrier, else WRITTEN or FENCED + number of a warpgroup.
CLEAN, BARRIER, WRITTEN, FENCED = 0, 1, 2, 5


def swizzled(addresses: np.ndarray, width: int) -> np.ndarray:
  """Where the hardware puts bytes: units of 16 permuted by the number, modulo 2, 4 or 8, of their 128 bytes.

  It goes by absolute addresses, so a box may start at any multiple of 128.
  """
  if width not in (16, 32, 64, 128):
    raise Unmodelled(f"a swizzle of {width} bytes")
  return addresses ^ ((addresses >> 7 & width // 16 - 1) << 4)


class Mbarrier:
  """A phase ends when all have arrived and all bytes that they announced are there."""

  def __init__(self, count: int):
    self.count = self.pending = count
    self.bytes = self.phase = 0
    self.waits: dict[int, int] = {}

  def arrive(self, threads: int, announced: int = 0) -> None:
    self.bytes += announced
    if threads > self.pending:
      raise Objection(f"{threads} arrive at an mbarrier that misses {self.pending}")
    self.pending -= threads
    self._end_phase()

  def complete(self, count: int) -> None:
    self.bytes -= count
    self._end_phase()

  def wait(self, warpgroup: int, parity: int) -> int:
    """The phase to wait for, of which parity is all that the program knows: the one after the last."""
    phase = self.waits[warpgroup] = self.waits.get(warpgroup, 0) + 1
    if parity != (phase - 1) % 2:
      raise Objection(f"the parity of wait {phase} is {parity}")
    return phase

  def passed(self, phase: int) -> bool:
    if self.phase > phase:
      raise Objection(f"phase {phase} ended, and the next one, before a wait for it: seen by parity it had not")
    return self.phase == phase

  def _end_phase(self) -> None:
    if self.pending == self.bytes == 0:
      self.phase, self.pending = self.phase + 1, self.count


class SharedMemory:
  """Addresses are absolute, of bytes."""

  def __init__(self, size: int):
    if size > MOST:
      raise Objection(f"{size} bytes of shared memory")
    self.bytes = np.full(BASE + -(-size // 16) * 16, POISON, np.uint8)
    self.state = np.zeros(len(self.bytes) // 4, np.uint8)
    self.barriers: dict[int, Mbarrier] = {}

  def add_barrier(self, address: int, count: int) -> None:
    self.state[self._vectors(np.array([address]), 2)] = BARRIER
    self.barriers[address] = Mbarrier(count)

  def barrier(self, address: int) -> Mbarrier:
    if address not in self.barriers:
      raise Objection(f"no mbarrier at {address:#x}")
    return self.barriers[address]

  def read(self, addresses: Lanes, vector: int) -> list[Lanes]:
    """As many words of each thread."""
    return [self.bytes.view(np.uint32)[words].astype(np.uint64) for words in self._vectors(addresses, vector)]

  def write(self, warpgroup: int, addresses: Lanes, values: list[Lanes]) -> None:
    for words, value in zip(self._vectors(addresses, len(values)), values, strict=True):
      if (self.state[words] == BARRIER).any() or len(np.unique(words)) < len(words):
        raise Objection("a write over an mbarrier, or of two threads to one place")
      self.bytes.view(np.uint32)[words] = value
      self.state[words] = WRITTEN + warpgroup

  def matrix_rows(self, addresses: Lanes, matrices: int) -> list[Lanes]:
    """Of matrices of 8 rows, whose addresses eight threads of a warp hold, the word that each thread holds."""
    if (addresses % np.uint64(16)).any():
      raise Objection("a row of a matrix at no multiple of 16")
    row = LANE // 32 * 32 + LANE % 32 // 4
    return [addresses[row + 8 * i] + (LANE % 4 * 4).astype(np.uint64) for i in range(matrices)]

  def fence(self, warpgroup: int) -> None:
    self.state[self.state == WRITTEN + warpgroup] = FENCED + warpgroup

  def meet(self, warpgroup: int) -> None:
    """After a barrier, one thread may let asynchronous work see what all have written and fenced."""
    self.state[self.state == FENCED + warpgroup] = CLEAN

  def check_visible(self, addresses: np.ndarray, work: str) -> None:
    """For asynchronous work, be it that reads or writes these bytes."""
    if self.state[self._words(addresses)].any():
      raise Objection(f"{work} touches an mbarrier, or what was written without a fence and a barrier after it")

  def _vectors(self, addresses: np.ndarray, vector: int) -> list[np.ndarray]:
    if (addresses.astype(np.int64) % (4 * vector)).any():
      raise Objection(f"{vector} words at no multiple of their size")
    first = self._words(addresses)
    return [first + i for i in range(vector)]

  def _words(self, addresses: np.ndarray) -> np.ndarray:
    addresses = addresses.astype(np.int64)
    if addresses.min() < BASE or addresses.max() >= len(self.bytes):
      raise Objection(f"addresses {addresses.min():#x} to {addresses.max():#x} reach out of shared memory")
    return addresses >> 2
