"""The Pareto front as a figure; only here is matplotlib imported."""

import importlib.util
import io

from jaxmoe.cost.estimate import Estimate
from jaxmoe.meshes.errors import MissingError
from jaxmoe.planner.pareto import Explored

FIGURES = ("pareto.svg", "pareto.png")


def figures(explored: Explored) -> dict[str, bytes]:
  """`pareto.svg` and `pareto.png`: memory over time of training, tokens of a device over latency of serving.

  Raises:
    MissingError: matplotlib is not installed.
  """
  if importlib.util.find_spec("matplotlib") is None:
    raise MissingError("a figure of the front needs matplotlib; install it with: pip install 'jaxmoe[plot]'")
  front = [explored.estimate(c) for c in explored.found]
  return {name: _drawn(front, name.rpartition(".")[2]) for name in FIGURES}


def _drawn(front: list[Estimate], form: str) -> bytes:
  import matplotlib  # pyright: ignore[reportMissingImports] an extra
  from matplotlib.figure import Figure  # pyright: ignore[reportMissingImports]

  d = front[0].deployment
  x, y, what = _points(front)
  file = io.BytesIO()
  with matplotlib.rc_context({"svg.hashsalt": "jaxmoe"}):  # the same bytes every time
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.step(x, y, where="post", linewidth=1, alpha=0.5)
    axes.plot(x, y, "o", markersize=4)
    axes.set_xscale("log")
    axes.set(xlabel="seconds a step", ylabel=what, title=f"{d.model.name} on {d.cluster.name}: {d.job.kind} (formula)")
    axes.grid(alpha=0.3)
    figure.savefig(file, format=form, metadata={"Date": None} if form == "svg" else {"Software": None}, dpi=150)
  return file.getvalue()


def _points(front: list[Estimate]) -> tuple[list[float], list[float], str]:
  seconds = [e.time.total_s for e in front]
  if front[0].deployment.train:
    return seconds, [float(e.memory.total) / 2**30 for e in front], "GiB of a device"
  return seconds, [e.tokens_per_s / e.deployment.strategy.devices for e in front], "tokens a second and device"
