"""Executes the PTX of a Hopper kernel byte by byte on numpy, with the launch that its host code prepares.

What the instruction set leaves open is drawn: warpgroups interleave at random, and asynchronous work is done as late,
as early or as randomly as its waits allow. What it forbids or leaves undefined raises `Objection`; what is not modelled
here raises `Unmodelled`. The 128 threads of a warpgroup go in step, so races among them stay unseen, and the blocks of
a grid run one after the other.
"""
