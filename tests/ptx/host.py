"""What a kernel's host code prepares: its tensor maps, parameters and grid. Found by executing the code's MLIR."""

import dataclasses
import re
from collections.abc import Callable
from typing import Any, NamedTuple

from ptx.objection import Unmodelled

WORD = 8  # bytes of a pointer or an index
ELEMENT_BYTES = {1: 1, 5: 2, 6: 4, 7: 2}  # of the driver's codes for uint8, float16, float32 and bfloat16
SIZES = {"!llvm.ptr": 8, "i64": 8, "i32": 4, "i8": 1}


@dataclasses.dataclass(frozen=True)
class TensorMap:
  """A tensor in device memory and a box of it; the dimension that lies together comes first. Strides in elements."""

  argument: int
  element_bytes: int
  sizes: tuple[int, ...]
  strides: tuple[int, ...]
  swizzle: int
  box: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Launch:
  """Parameters are numbers of arguments; `None` stands for the tensor maps, which have their offset in bytes."""

  blocks: int
  threads: int
  shared_bytes: int
  parameters: tuple[int | None, ...]
  maps: dict[int, TensorMap]
  shapes: dict[int, tuple[int, ...]]  # of arguments that a tensor map was made of


class Pointer(NamedTuple):
  """A place in a block of memory, which goes by the name of the value that allocated it."""

  block: str
  offset: int = 0

  def plus(self, count: int) -> "Pointer":
    return Pointer(self.block, self.offset + count)


class Host:
  """Executes the host function line by line. A memref is its structure: pointer at (1,), offset at (2,)."""

  def __init__(self, arguments: str):
    self.values: dict[str, Any] = {arguments: Pointer("arguments")}
    self.memory: dict[Pointer, Any] = {}
    self.maps: dict[Pointer, TensorMap] = {}
    self.shapes: dict[int, tuple[int, ...]] = {}
    self.spec: list[Any] = []

  def load(self, pointer: Pointer):
    if pointer.block == "arguments":
      return Pointer(f"argument {pointer.offset // WORD}")
    return self.memory.get(pointer)

  def array(self, pointer: Pointer, length: int) -> list:
    return [self.memory[pointer.plus(WORD * i)] for i in range(length)]

  def make_map(self, at, tensor, element, rank, sizes, strides, swizzle, box):
    if element not in ELEMENT_BYTES or tensor.offset:
      raise Unmodelled(f"tensor map of elements {element} at byte {tensor.offset}")
    sizes, strides, box = (tuple(self.array(pointer, rank)[::-1]) for pointer in (sizes, strides, box))
    argument = int(tensor.block.removeprefix("argument "))
    self.maps[at] = TensorMap(argument, ELEMENT_BYTES[element], sizes, strides, swizzle, box)

  def launch(self) -> Launch:
    *grid_and_block, shared_bytes, _, count, parameters, sizes = self.spec
    blocks, *ones = grid_and_block
    if ones[:5] != [1, 1, 0, 0, 0] or ones[6:] != [1, 1]:
      raise Unmodelled(f"grid, cluster and block of {grid_and_block}")
    by_value = [self.memory[sizes.plus(4 * i)] for i in range(count)]
    slots = self.array(parameters, count)
    numbers = [
      None if size else int(self.load(slot).block.removeprefix("argument "))
      for size, slot in zip(by_value, slots, strict=True)
    ]
    (maps,) = [slot.block for size, slot in zip(by_value, slots, strict=True) if size]
    found = {at.offset: tensor_map for at, tensor_map in self.maps.items() if at.block == maps}
    return Launch(blocks, ones[5], shared_bytes, tuple(numbers), found, self.shapes)


def constant(host: Host, name: str, text: str):
  return int(text)


def undefined(host: Host, name: str):
  return {}


def cast(host: Host, name: str, source: str, types: str):
  """The same value; casts to memref tell the shapes of arguments."""
  value = host.values[source]
  if argument := re.search(r"to memref<((?:\d+x)+)\w+> \{mosaic_gpu\.from_kernel_arg_idx = (\d+)", types):
    host.shapes[int(argument[2])] = tuple(int(size) for size in argument[1].split("x")[:-1])
  return value


def same(host: Host, name: str, source: str):
  return host.values[source]


def insert(host: Host, name: str, value: str, into: str, path: str):
  return {**host.values[into], _path(path): host.values[value]}


def extract(host: Host, name: str, source: str, path: str):
  return host.values[source][_path(path)]


def allocate(host: Host, name: str):
  return Pointer(name)


def allocate_array(host: Host, name: str):
  return {(1,): Pointer(name), (2,): 0}


def store_index(host: Host, name: str, value: str, array: str, index: str):
  host.memory[host.values[array][(1,)].plus(WORD * host.values[index])] = host.values[value]


def load(host: Host, name: str, source: str):
  return host.load(host.values[source])


def store(host: Host, name: str, value: str, pointer: str):
  host.memory[host.values[pointer]] = host.values[value]


def element(host: Host, name: str, source: str, index: str, kind: str):
  return host.values[source].plus(SIZES[kind] * int(index))


def member(host: Host, name: str, source: str, index: str, members: str):
  if members.split(", ")[: int(index)] != ["ptr"] * int(index):
    raise Unmodelled(f"member {index} of {members}")
  return host.values[source].plus(WORD * int(index))


def multiply(host: Host, name: str, left: str, right: str):
  return host.values[left] * host.values[right]


def add(host: Host, name: str, left: str, right: str):
  base, count = host.values[left], host.values[right]
  return base.plus(count) if isinstance(base, Pointer) else base + count


def make_map(host: Host, name: str, operands: str):
  host.make_map(*(host.values[each] for each in operands.split(", ")))


def build_spec(host: Host, name: str, operands: str):
  host.spec = [host.values[each] for each in operands.split(", ")]


def _path(text: str) -> tuple[int, ...]:
  return tuple(int(index) for index in text.split(", "))


POINTER = r" : \(!llvm\.ptr\) -> !llvm\.ptr, "
OPERATIONS: dict[str, Callable] = {
  r"llvm\.mlir\.constant\((-?\d+) : i\d+\) : i\d+": constant,
  r"llvm\.mlir\.undef : .*": undefined,
  r"builtin\.unrealized_conversion_cast (\S+) : (.*)": cast,
  r"memref\.reinterpret_cast (\S+) to offset: \[0\], sizes: .*": same,
  r"memref\.transpose (\S+) .*": same,
  r"llvm\.(?:ptrtoint|inttoptr|trunc) (\S+) : .*": same,
  r"llvm\.insertvalue (\S+), (\S+)\[([\d, ]+)\] : .*": insert,
  r"llvm\.extractvalue (\S+)\[([\d, ]+)\] : .*": extract,
  r"llvm\.alloca \S+ x .*": allocate,
  r"memref\.alloca\(\) : memref<\d+xi64>": allocate_array,
  r"memref\.store (\S+), (\S+)\[(\S+)\] : memref<\d+xi64>": store_index,
  r"llvm\.load (\S+) : .*": load,
  r"llvm\.store (\S+), (\S+) : .*": store,
  rf"llvm\.getelementptr (\S+)\[(\d+)\]{POINTER}(\S+)": element,
  rf"llvm\.getelementptr (\S+)\[0, (\d+)\]{POINTER}!llvm\.struct<\((.*)\)>": member,
  r"llvm\.mul (\S+), (\S+) : i64": multiply,
  r"llvm\.add (\S+), (\S+) : i64": add,
  r"call @mosaic_gpu_init_tma_desc\((.*?)\) : .*": make_map,
  r"call @mosaic_gpu_build_kernel_spec\(%\w+, (.*?)\) : .*": build_spec,
}


def launch(text: str) -> Launch:
  """What the function `..._mosaic_gpu` of a module prepares."""
  head = re.search(r"func\.func @\w+_mosaic_gpu\(%\w+: !llvm\.ptr.*?, (%\w+): .*", text)
  if not head:
    raise Unmodelled("a module without host code")
  host = Host(head[1])
  for line in text[head.end() :].splitlines()[1:]:
    operation = line.partition(" loc(")[0].strip()
    if operation == "return":
      break
    execute(host, operation)
  return host.launch()


def execute(host: Host, operation: str) -> None:
  name, _, what = operation.partition(" = ") if operation.startswith("%") else ("", "", operation)
  for pattern, function in OPERATIONS.items():
    if found := re.fullmatch(pattern, what):
      host.values[name] = function(host, name, *found.groups())
      return
  raise Unmodelled(f"host operation {operation}")
