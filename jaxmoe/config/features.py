"""What a model has beyond the plain layer: attention over all keys, then softmax-routed experts and nothing else."""

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


def listed(features: list[str]) -> str:
  """`a`, `a and b`, `a, b and c`."""
  return " and ".join([", ".join(features[:-1]), features[-1]] if len(features) > 1 else features)
