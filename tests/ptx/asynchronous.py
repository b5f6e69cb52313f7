"""Instructions that start asynchronous work, or order it: mbarriers, bulk copies, multiplications, fences."""

from ptx import bulk_copies, tensor_cores
from ptx.objection import Objection, Unmodelled
from ptx.warpgroup import MAPS, executes

COPY = r"cp\.async\.bulk"
ARRIVE = r"mbarrier\.arrive"
NAMED = range(1, 16)  # barriers beside that of the whole block


@executes(r"mbarrier\.init\.shared::cta\.b64", partly=True)
def init_barrier(group, active, address, count):
  group.block.shared.add_barrier(group.of_one(active, address), group.of_one(active, count))


@executes(rf"{ARRIVE}\.expect_tx\.release\.cta\.shared::cta\.b64")
def arrive_and_announce(group, active, _, address, count):
  announced = int(group.read(count)[active].sum())
  group.block.shared.barrier(group.uniform(address)).arrive(int(active.sum()), announced)


@executes(rf"{ARRIVE}\.release\.cta\.shared::cta\.b64")
def arrive(group, active, _, address, count):
  group.block.shared.barrier(group.uniform(address)).arrive(int(active.sum()) * group.uniform(count))


@executes(r"mbarrier\.try_wait\.parity\.shared\.b64")
def wait_for_barrier(group, active, predicate, address, parity, time_limit):
  """Tries until it succeeds."""
  barrier = group.block.shared.barrier(group.uniform(address))
  phase = barrier.wait(group.number, group.uniform(parity))
  group.write(predicate, active)
  return lambda: barrier.passed(phase)


@executes(r"bar\.sync")
def meet(group, active, barrier, threads=None):
  """Of the block, or of one warpgroup, whose threads go in step anyhow."""
  number = group.uniform(barrier)
  group.block.shared.meet(group.number)
  if threads is None and number == 0:
    return group.block.arrive()
  if threads is None or group.uniform(threads) != len(active):
    raise Unmodelled(f"a barrier of {threads} threads")
  if number not in NAMED or group.block.owners.setdefault(number, group.number) != group.number:
    raise Objection(f"several warpgroups use barrier {number}")
  return None


@executes(r"fence\.mbarrier_init\.release\.cluster")
def fence_barriers(group, active):
  """Barriers are seen at once here."""


@executes(r"fence\.proxy\.async\.shared::cta")
def fence_proxy(group, active):
  group.block.shared.fence(group.number)


@executes(rf"{COPY}\.tensor\.\dd\.shared::cta\.global\.mbarrier::complete_tx::bytes", partly=True)
def start_load(group, active, target, source, barrier):
  tensor_map, corner = _box(group, active, source)
  block = group.block
  barrier = block.shared.barrier(group.of_one(active, barrier))
  start = group.of_one(active, target)
  block.start(bulk_copies.Load(block.shared, block.memory[tensor_map.argument], tensor_map, corner, start, barrier))


@executes(rf"{COPY}\.tensor\.\dd\.global\.shared::cta\.bulk_group", partly=True)
def start_store(group, active, target, source):
  tensor_map, corner = _box(group, active, target)
  block, argument = group.block, tensor_map.argument
  if argument not in block.written:
    raise Objection(f"argument {argument} is no result and is written")
  start, result, written = group.of_one(active, source), block.memory[argument], block.written[argument]
  group.stores.open.append(bulk_copies.Store(block.shared, result, written, tensor_map, corner, start))


def _box(group, active, tensor):
  """The tensor map that one thread names, and coordinates in it."""
  offset = group.of_one(active, tensor) - MAPS
  if offset not in group.block.launch.maps:
    raise Objection(f"no tensor map at {offset}")
  corner = tuple(group.of_one(active, each, "s32") for each in tensor.coordinates)
  return group.block.launch.maps[offset], corner


@executes(rf"{COPY}\.commit_group")
def commit_stores(group, active):
  group.stores.commit()


@executes(rf"{COPY}\.wait_group(?:\.read)?")
def wait_for_stores(group, active, kept):
  group.stores.wait(kept)


@executes(r"wgmma\.fence\.sync\.aligned")
def fence_registers(group, active):
  """Lets multiplications see what was written to registers."""
  group.unfenced.clear()


@executes(r"wgmma\.mma_async\.sync\.aligned\.m64n(\d+)k16\.f32\.(bf16|f16)\.(bf16|f16)")
def multiply(group, active, columns, left_type, right_type, sums, left, right, *flags):
  flags = tuple(map(group.uniform, flags))
  left, right = group.uniform(left), group.uniform(right)
  work = tensor_cores.Multiplication((columns, left_type, right_type), sums, left, right, flags)
  if any(each.registers != sums for each in group.multiplications.under_way() if {*each.registers} & {*sums}):
    raise Objection("two multiplications under way share some of their registers")
  if group.unfenced & {*sums}:
    raise Objection("sums were written without a wgmma.fence after it")
  group.multiplications.open.append(work)
  group.in_flight |= {*sums}


@executes(r"wgmma\.commit_group\.sync\.aligned")
def commit_multiplications(group, active):
  group.multiplications.commit()


@executes(r"wgmma\.wait_group\.sync\.aligned")
def wait_for_multiplications(group, active, kept):
  group.multiplications.wait(kept)
  group.in_flight = frozenset(register for work in group.multiplications.under_way() for register in work.registers)
