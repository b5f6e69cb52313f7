"""Instructions of threads: control, registers, and memory that they read and write themselves."""

import numpy as np

from ptx import lanes
from ptx.lanes import LANE
from ptx.objection import Objection, Unmodelled
from ptx.program import Address
from ptx.warpgroup import ARGUMENT, executes


@executes(r"bra(?:\.uni)?")
def branch(group, active, label):
  group.at = group.block.program.labels[label]


@executes(r"ret")
def end(group, active):
  group.at = len(group.block.program.instructions)


@executes(r"mov\.b32")
def move(group, active, target, source):
  """Also from and to two halves, the low one first."""
  if isinstance(source, tuple):
    low, high = map(group.read, source)
    value = low | high << np.uint64(16)
  else:
    value = group.read(source)
  if isinstance(target, tuple):
    low, high = target
    group.write(low, lanes.pattern(value, 16))
    group.write(high, lanes.pattern(value >> np.uint64(16), 16))
  else:
    group.write(target, lanes.pattern(value, 32))
    if isinstance(source, str) and source not in group.unfenced:
      group.unfenced.discard(target)  # another name of the same register, to ptxas


@executes(r"elect\.sync")
def elect(group, active, target, mask):
  """The first thread of each warp; the instruction set leaves open which, but it is always the same."""
  register, predicate = target
  if group.uniform(mask) != 2**64 - 1:
    raise Unmodelled("an election among fewer than a warp")
  group.write(register, lanes.everywhere(0))
  group.write(predicate, LANE % 32 == 0)


@executes(r"ld\.param::entry\.b64")
def load_parameter(group, active, target, address):
  if address.offset:
    raise Unmodelled("a part of a parameter")
  group.write(target, group.read(address.base))


@executes(r"ld(?:\.global)?(?:\.v2)?\.b32")
def load_global(group, active, targets, address):
  addresses = group.read(address)
  targets = targets if isinstance(targets, tuple) else (targets,)
  argument = lanes.uniform(addresses >> np.uint64(ARGUMENT))
  words = group.block.words(argument)
  at = (addresses & np.uint64(2**ARGUMENT - 1)).astype(np.int64)
  if (at % (4 * len(targets))).any() or at.max() // 4 + len(targets) > len(words):
    raise Objection(f"a load of argument {argument} at {at.max()} of {4 * len(words)} bytes")
  for i, target in enumerate(targets):
    group.write(target, words[at // 4 + i].astype(np.uint64))


@executes(r"ld\.shared\.v2\.b32")
def load_shared(group, active, targets, address):
  for target, value in zip(targets, group.block.shared.read(group.read(address), len(targets)), strict=True):
    group.write(target, value)


@executes(r"st\.shared\.v[24]\.b32")
def store_shared(group, active, address, sources):
  group.block.shared.write(group.number, group.read(address), [group.read(source) for source in sources])


@executes(r"ldmatrix\.sync\.aligned\.m8n8\.x4\.shared\.b16")
def load_matrices(group, active, targets, address):
  shared = group.block.shared
  rows = shared.matrix_rows(group.read(address), len(targets))
  for target, words in zip(targets, rows, strict=True):
    (value,) = shared.read(words, 1)
    group.write(target, value)


@executes(r"stmatrix\.sync\.aligned\.m8n8\.x4\.shared\.b16")
def store_matrices(group, active, address, sources):
  shared = group.block.shared
  rows = shared.matrix_rows(group.read(address), len(sources))
  for source, words in zip(sources, rows, strict=True):
    shared.write(group.number, words, [group.read(source)])


@executes(r"prefetch\.tensormap", partly=True)
def prefetch(group, active, address: Address):
  """Says only which tensor map will be used."""


@executes(r"setmaxnreg\.(?:inc|dec)\.sync\.aligned\.u32")
def set_registers(group, active, count):
  group.registers = count
  if sum(each.registers for each in group.block.groups) > 512:
    raise Objection("more registers than there are")
