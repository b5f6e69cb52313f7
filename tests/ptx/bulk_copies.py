"""Boxes that bulk copies move between device memory and shared memory, as tensor maps describe them."""

import functools

import numpy as np

from ptx.host import TensorMap
from ptx.objection import Objection
from ptx.shared_memory import POISON, SharedMemory, swizzled


@functools.cache
def check(tensor_map: TensorMap) -> None:
  """The rules of the driver for tensor maps."""
  inner = tensor_map.box[0] * tensor_map.element_bytes
  strides = [stride * tensor_map.element_bytes for stride in tensor_map.strides[1:]]
  if tensor_map.strides[0] != 1 or any(stride % 16 for stride in strides) or len(tensor_map.box) > 5:
    raise Objection(f"strides of {tensor_map}")
  if not all(1 <= length <= 256 for length in tensor_map.box) or inner % 16 or inner > tensor_map.swizzle > 16:
    raise Objection(f"box of {tensor_map}")


@functools.cache
def _box(tensor_map: TensorMap) -> np.ndarray:
  """Coordinates of each element of a box, (rank, elements), in the order in which they lie in shared memory."""
  check(tensor_map)
  return np.indices(tensor_map.box[::-1]).reshape(len(tensor_map.box), -1)[::-1]


def elements(tensor_map: TensorMap, corner: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
  """Number in device memory of each element of the box at a corner, and whether the tensor has it."""
  if len(corner) != len(tensor_map.box):
    raise Objection(f"{len(corner)} coordinates for {tensor_map}")
  at = _box(tensor_map) + np.array(corner)[:, None]
  inside = ((at >= 0) & (at < np.array(tensor_map.sizes)[:, None])).all(axis=0)
  return np.array(tensor_map.strides) @ at, inside


def places(tensor_map: TensorMap, start: int) -> np.ndarray:
  """Addresses of the box's bytes in shared memory."""
  if start % 128:
    raise Objection(f"a box at {start:#x}, no multiple of 128")
  bytes_ = np.prod(tensor_map.box) * tensor_map.element_bytes
  return swizzled(start + np.arange(bytes_), tensor_map.swizzle)


def typed(array: np.ndarray, tensor_map: TensorMap) -> np.ndarray:
  return array.view({1: np.uint8, 2: np.uint16, 4: np.uint32}[tensor_map.element_bytes])


class Load:
  """A copy into shared memory, whose bytes are undefined from its start until it is done."""

  def __init__(self, shared: SharedMemory, source: np.ndarray, tensor_map: TensorMap, corner, start: int, barrier):
    numbers, inside = elements(tensor_map, corner)
    source = typed(source, tensor_map)
    self.bytes = np.where(inside, source[np.where(inside, numbers, 0)], 0).astype(source.dtype).view(np.uint8)
    self.shared, self.places, self.barrier = shared, places(tensor_map, start), barrier
    self.check()
    shared.bytes[self.places] = POISON

  def check(self) -> None:
    self.shared.check_visible(self.places, "a copy to shared memory")

  def finish(self) -> None:
    self.check()
    self.shared.bytes[self.places] = self.bytes
    self.barrier.complete(len(self.bytes))


class Store:
  """A copy out of shared memory, which is read only when it is done; `written` counts elements."""

  def __init__(self, shared: SharedMemory, target: np.ndarray, written, tensor_map: TensorMap, corner, start: int):
    self.numbers, inside = elements(tensor_map, corner)
    if not inside.all():
      raise Objection(f"a copy from shared memory to {corner}, beyond {tensor_map}")
    self.shared, self.places, self.target = shared, places(tensor_map, start), typed(target, tensor_map)
    np.add.at(written, self.numbers, 1)
    self.check()

  def check(self) -> None:
    self.shared.check_visible(self.places, "a copy from shared memory")

  def finish(self) -> None:
    self.check()
    self.target[self.numbers] = self.shared.bytes[self.places].view(self.target.dtype)
