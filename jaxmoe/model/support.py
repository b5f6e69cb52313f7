"""Which models of those that can be planned can also be built and run."""

from jaxmoe.config.features import listed, unusual_functions, unusual_layers
from jaxmoe.config.model import ModelConfig


def check_supported(model: ModelConfig) -> None:
  """Returns quietly if `Transformer` can run the model.

  Raises:
    NotImplementedError: it has features that the runnable model lacks; the message names them all.
  """
  features = [*unusual_layers(model), *unusual_functions(model)]
  if features:
    raise NotImplementedError(f"model {model.name} can be planned but not run: it has {listed(features)}")
