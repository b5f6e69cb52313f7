"""A small valid deployment as text; tests edit it."""

PLAN = """\
schema_version: 1
name: tiny
title: A tiny plan
model:
  num_layers: 4
  d_model: 64
  num_heads: 4
  head_dim: 16
  num_experts: 8
  experts_per_token: 2
  d_expert: 128
  vocab_size: 256
cluster:
  name: lab
  devices: 16
  devices_per_host: 8
  peak_flops_per_s: {bfloat16: 100e12}
  matmul_efficiency: 0.5
  memory_bytes: 16_000_000_000
  memory_bandwidth_bytes_per_s: 1e12
  memory_efficiency: 0.8
  tiers:
    - {name: link, devices: 16, bandwidth_bytes_per_s: 1e11, latency_s: 1e-6}
strategy: {data: 1, stage: 2, expert: 4, tensor: 2}
job: {kind: train, batch: 16, sequence_length: 32, microbatches: 2}
claims:
  - {name: devices, value: 16, unit: devices, quote: on 16 devices}
"""


def edited(*edits: tuple[str, str]) -> str:
  """PLAN with every `old` replaced by its `new`; each must stand in it exactly once."""
  text = PLAN
  for old, new in edits:
    assert text.count(old) == 1, old
    text = text.replace(old, new)
  return text
