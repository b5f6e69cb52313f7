"""What a model has beyond the plain layer: attention over all keys, then softmax-routed experts and nothing else.

And what a job has beyond dtypes of weights, of computing and of the optimizer.
"""

from jaxmoe.config.job import Precision
from jaxmoe.config.model import ModelConfig
from jaxmoe.config.parts import Biases, Multipliers, Rotary, Routing


def unusual_layers(model: ModelConfig) -> list[str]:
  """Features that change which matmuls run, what is sent, or what is kept."""
  features = {
    "latent attention": model.latent,
    "attention to near keys only": model.local,
    "dense layers": model.dense,
    "a shared expert": model.shared,
    "prediction layers": model.mtp_layers,
  }
  return [name for name, present in features.items() if present]


def unusual_functions(model: ModelConfig) -> list[str]:
  """Features that change what is computed, or small tensors, but no matmul and no traffic of tokens."""
  features = {
    "biases": model.biases != Biases(),
    "attention sinks": model.sinks,
    "layer norm": model.norm != "rms",
    f"a {model.query_key_norm} norm of queries and keys": model.query_key_norm in ("projection", "unit"),
    "clipped queries, keys and values": model.clip_qkv is not None,
    "other than plain rotary positions": model.rotary != Rotary(),
    "other than softmax routing": model.routing != Routing(),
    "multipliers": model.multipliers != Multipliers(),
    f"activation {model.activation}": model.activation not in ("silu", "gelu"),
  }
  return [name for name, present in features.items() if present]


def unusual_dtypes(precision: Precision) -> list[str]:
  """Copies of weights, and dtypes beside the usual ones; one that is named and changes nothing is usual."""
  features = {
    "gradients in a dtype of their own": precision.gradients not in (None, precision.weights),
    "a master copy of the weights": precision.master is not None,
    "matmuls in a dtype of their own": precision.matmuls not in (None, precision.compute),
  }
  return [name for name, present in features.items() if present]


def unusual(model: ModelConfig) -> list[str]:
  """All of a model's."""
  return [*unusual_layers(model), *unusual_functions(model)]


def cannot_run(features: list[str]) -> str:
  """What is said of whatever has these features; empty if there are none."""
  return f"can be planned but not run: it has {listed(features)}" if features else ""


def listed(features: list[str]) -> str:
  """`a`, `a and b`, `a, b and c`."""
  return " and ".join([", ".join(features[:-1]), features[-1]] if len(features) > 1 else features)
