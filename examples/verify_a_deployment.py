"""Compile a 512-device training step on this machine, at full size, and compare it with the prediction.

Expected output:

tp8_pp4_ep4_dp4: 4 data x 4 stage x 4 expert x 8 tensor = 512 devices
what                axis          predicted    compiled     ok
parameters                        145 MiB      145 MiB      True
optimizer                         290 MiB      290 MiB      True
experts matmuls                   2.41 TFLOP   2.41 TFLOP   True
all matmuls                       4.23 TFLOP   4.23 TFLOP   True
all-to-all          expert        6.56 GiB     6.56 GiB     True
all-reduce          tensor        2.19 GiB     2.19 GiB     True
all checks hold: True
"""

from jaxmoe.config.catalogue import load_deployment
from jaxmoe.report import units
from jaxmoe.xla.verify import verify

SHOWN = {
  ("parameters", ""),
  ("optimizer", ""),
  ("experts matmuls", ""),
  ("all matmuls", ""),
  ("all-to-all", "expert"),
  ("all-reduce", "tensor"),
}

deployment = load_deployment("tp8_pp4_ep4_dp4")
comparison = verify(deployment, "cpu")

print(f"{deployment.name}: {deployment.strategy.product}")
print(f"{'what':<19} {'axis':<13} {'predicted':<12} {'compiled':<12} ok")
for check in comparison.checks:
  if (check.name, check.axis) in SHOWN:
    predicted, compiled = (units.quantity(number, check.unit) for number in (check.predicted, check.compiled))
    print(f"{check.name:<19} {check.axis:<13} {predicted:<12} {compiled:<12} {check.ok}")
print(f"all checks hold: {comparison.ok}")
