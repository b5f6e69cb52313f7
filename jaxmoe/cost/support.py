"""Which models the closed forms of a whole step cover; parameters, useful FLOPs and caches cover every model."""

from jaxmoe.config.features import listed, unusual_layers
from jaxmoe.config.model import ModelConfig


def check_priced(model: ModelConfig) -> None:
  """Returns quietly if executed FLOPs, collectives and activations of the model are known.

  Raises:
    NotImplementedError: its layers differ from the plain one; the message names how.
  """
  features = unusual_layers(model)
  if features:
    raise NotImplementedError(
      f"a step of model {model.name} is not priced: it has {listed(features)}, and executed FLOPs, collectives and"
      " activations are known for plain layers only; `jaxmoe model show` gives its parameters"
    )
