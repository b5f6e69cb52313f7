"""A model split once into its structure and a pytree of sharded parameters."""

import dataclasses

import jax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxmoe.config.deployment import Deployment
from jaxmoe.meshes.axes import EXPERT, TENSOR
from jaxmoe.meshes.build import spec
from jaxmoe.model.transformer import Transformer


@dataclasses.dataclass(frozen=True)
class ShardedModel:
  """The Transformer of a deployment on a mesh; parameters live outside, as a pytree.

  Attributes:
    graph: module structure without arrays.
    abstract: shape, dtype and sharding of every parameter.
  """

  deployment: Deployment
  mesh: Mesh
  graph: nnx.GraphDef
  abstract: nnx.State

  @property
  def specs(self) -> nnx.State:
    """The PartitionSpec of every parameter."""
    return jax.tree.map(lambda x: x.sharding.spec, self.abstract)

  @property
  def shardings(self) -> nnx.State:
    return jax.tree.map(lambda x: x.sharding, self.abstract)

  def init(self, seed: int = 0) -> nnx.State:
    """Fresh parameters, each device making its own shard; the values do not depend on the mesh."""

    def make(key):
      return nnx.state(Transformer(self.deployment, rngs=nnx.Rngs(params=key)))

    with jax.set_mesh(self.mesh):
      return jax.jit(make, out_shardings=self.shardings)(jax.random.key(seed))

  def merge(self, parameters: nnx.State) -> Transformer:
    """The model over these parameters, or over one device's shards of them inside `shard_map`."""
    return nnx.merge(self.graph, parameters)

  def spec(self, role: str, letters: str) -> PartitionSpec:
    return spec(self.deployment.rules, role, letters)

  def sharding(self, role: str, letters: str) -> NamedSharding:
    return NamedSharding(self.mesh, self.spec(role, letters))


def shard_model(deployment: Deployment, mesh: Mesh) -> ShardedModel:
  """The sharded model by shape alone: nothing is allocated."""
  deployment = _with_experts_over_split_axes(deployment)
  with jax.set_mesh(mesh):
    graph, state = nnx.split(nnx.eval_shape(lambda: Transformer(deployment, rngs=nnx.Rngs(params=jax.random.key(0)))))
  abstract = jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, s)),
    state,
    nnx.get_partition_spec(state),
  )
  return ShardedModel(deployment, mesh, graph, abstract)


def _with_experts_over_split_axes(d: Deployment) -> Deployment:
  """The same without `tensor` under experts where it splits no heads, and so is one device.

  What lies over an axis varies over it by its type, and no sum over heads would take that away again.
  """
  if TENSOR in d.strategy.heads_over or TENSOR not in d.strategy.experts_over:
    return d
  return dataclasses.replace(d, strategy=dataclasses.replace(d.strategy, experts_over=(EXPERT,)))
