"""Recompute what five deployment documents claim, without jax: how many numbers agree, and the gravest that do not.

Expected output:

ep256_pp16: 37 of 51 claims are consistent
  contradicts_document: devices of 256 devices
    EP 256 x PP 16 x TP 1 x SP 1 x DP 1 = 4,096 devices
  contradicts_document: expert_parallel_size of 256
    stated: at most the 16 experts of a stage
  contradicts_document: pipeline_parallel_size_in_product of 1
    stated: PP 16
  contradicts_document: kv_cache_bytes_per_layer of 20 MB
    16 heads x 32 x 2 (K+V) x 10,240 tokens x 2 B x 128 sequences = 2.684 GB
  contradicts_document: stage_message_bytes of 64 kB
    128 sequences x 512 x 2 B = 131.1 kB
  not met: throughput: > 100 tokens/ms per GPU
ep64_tp2: 24 of 34 claims are consistent
  contradicts_document: expert_bytes_per_device of 64 MB
    16 layers x 1 expert x 1,024 x 2,048 x 2 matrices x 8 bits / 8 bits a byte / TP 2 = 33.55 MB
  not met: Compute Efficiency: Excellent (< 1% utilization)
ep64_tp2_pp4: 48 of 63 claims are consistent
  contradicts_document: devices of 128 devices
    EP 64 x PP 4 x TP 2 = 512 devices
  impossible: throughput_batches_per_s of 512,000 batches/s
    at most 128 devices x 400 TFLOP/s / 57.26 TFLOP a batch = 894.2 batches/s
  impossible: latency_s of 2 μs
    at least 57.26 TFLOP a batch / (128 devices x 400 TFLOP/s) = 1.118 ms
  contradicts_document: expert_parallel_size of 64
    stated: at most the 16 experts of a stage
  contradicts_document: module_divisions of 128 modules
    4 stages x 64 experts x 2 = 512 modules
  not met: Parallel Efficiency: >90%
tp4_ep4_pp4: 89 of 101 claims are consistent
  contradicts_document: devices of 16 devices
    EP 4 x PP 4 x TP 4 x DP 1 = 64 devices
  impossible: modules_per_device of 2.5 modules
    2 layers x (1 part of attention + 1 expert) = 4 modules
  impossible: sequential_layers of 2 layers
    at least every token passes 8 layers one after another, pipelined or not
  not met: GPU utilization: >90% (balanced load)
tp8_pp4_ep4_dp4: 39 of 52 claims are consistent
  contradicts_document: parameters_total of 30B parameters
    16 layers x 64 experts x 2 matrices x 1,024 x 2,048 + 0.1353B elsewhere = 4.43B parameters
  contradicts_document: memory_bytes_total of 257 GB
    60 GB + 8.4 GB + 60 GB + 120 GB = 248.4 GB
  contradicts_document: earlier_memory_bytes_total of 52.3 GB
    4.4B parameters x 8 bytes + 8.4 GB = 43.6 GB
  contradicts_document: throughput_sequences_per_s of 2,000 sequences/s
    512 sequences / 64 ms = 8,000 sequences/s
  contradicts_document: device_memory_efficiency of 100 %
    257 GB / 512 devices / 64 GB = 0.7843 %
  contradicts_document: gradient_accumulation_steps of 1 step
    512 sequences / (32 sequences x DP 4) = 4 steps
"""

from collections import Counter

from jaxmoe.config.catalogue import document_names, load_deployment
from jaxmoe.planner.amount import shown
from jaxmoe.planner.audit import Verdict, audit, requirements

GRAVE = (Verdict.IMPOSSIBLE, Verdict.CONTRADICTS_DOCUMENT)

for name in document_names():
  deployment = load_deployment(name)
  findings = audit(deployment)
  counts = Counter(finding.verdict for finding in findings)
  print(f"{name}: {counts[Verdict.CONSISTENT]} of {len(findings)} claims are consistent")
  for finding in findings:
    if finding.verdict in GRAVE:
      print(f"  {finding.verdict}: {finding.claim} of {shown(finding.document, finding.unit)}")
      print(f"    {finding.arithmetic}")
  for requirement in requirements(deployment):
    if not requirement.holds:
      print(f"  not met: {requirement.quote}")
