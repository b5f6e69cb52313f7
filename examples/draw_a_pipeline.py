"""Compare four pipeline schedules by bubble and by activations held, and draw three, without a device and without jax.

A microbatch's forward, input gradient and weight gradient take 2 ticks each on one stage; half on one of two chunks.

Expected output:

schedule     ticks  bubble  holds, by stage
GPipe        48     25.0%   6 6 6
1F1B         48     25.0%   3 2 1
interleaved  42     14.3%   4 3 2
zero-bubble  40     10.0%   3 3 3

GPipe
tick    0  1  2  3  4  5  6  7  8  9  10 11 12 13 14 15
stage 0 F0 F1 F2 F3 F4 F5 .  .  .  .  B5 B4 B3 B2 B1 B0
stage 1 .  F0 F1 F2 F3 F4 F5 .  .  B5 B4 B3 B2 B1 B0 .
stage 2 .  .  F0 F1 F2 F3 F4 F5 B5 B4 B3 B2 B1 B0 .  .

1F1B
tick    0  1  2  3  4  5  6  7  8  9  10 11 12 13 14 15
stage 0 F0 F1 F2 .  .  B0 F3 B1 F4 B2 F5 B3 .  B4 .  B5
stage 1 .  F0 F1 .  B0 F2 B1 F3 B2 F4 B3 F5 B4 .  B5 .
stage 2 .  .  F0 B0 F1 B1 F2 B2 F3 B3 F4 B4 F5 B5 .  .

zero-bubble
tick    0  1  2  3  4  5  6  7  8  9  10 11 12 13 14 15 16 17 18 19
stage 0 F0 F1 F2 .  .  B0 W0 F3 B1 W1 F4 B2 W2 F5 B3 W3 B4 W4 B5 W5
stage 1 .  F0 F1 .  B0 F2 B1 W0 F3 B2 W1 F4 B3 W2 F5 B4 W3 B5 W4 W5
stage 2 .  .  F0 B0 F1 B1 F2 B2 W0 F3 B3 W1 F4 B4 W2 F5 B5 W3 W4 W5
"""

from jaxmoe.pipeline.schedule_drawing import draw
from jaxmoe.pipeline.schedule_makers import gpipe, interleaved, one_forward_one_backward, zero_bubble
from jaxmoe.pipeline.schedule_timing import Costs, time_schedule
from jaxmoe.pipeline.schedules import in_flight

STAGES, MICROBATCHES = 3, 6
SCHEDULES = {
  "GPipe": (gpipe(STAGES, MICROBATCHES), Costs(F=2, B=4)),
  "1F1B": (one_forward_one_backward(STAGES, MICROBATCHES), Costs(F=2, B=4)),
  "interleaved": (interleaved(STAGES, MICROBATCHES, chunks=2), Costs(F=1, B=2)),
  "zero-bubble": (zero_bubble(STAGES, MICROBATCHES), Costs(F=2, B=2, W=2)),
}

print(f"{'schedule':<12} ticks  bubble  holds, by stage")
for name, (schedule, costs) in SCHEDULES.items():
  timeline = time_schedule(schedule, costs)
  held = " ".join(f"{chunks / schedule.chunks:g}" for chunks in in_flight(schedule))
  print(f"{name:<12} {timeline.makespan:<6} {max(timeline.bubble_shares):<7.1%} {held}")

for name, (schedule, _) in SCHEDULES.items():
  if schedule.chunks == 1:
    print(f"\n{name}\n{draw(schedule)}")
