"""A run on this machine's CPU that its memory cannot hold is refused before it fills that memory."""

import pathlib

import pytest
import tiny
from plans import edited

from jaxmoe.cli.exit_codes import ExitCode
from jaxmoe.cli.main import main
from jaxmoe.cost.least_memory import least_step_bytes, least_temporary_bytes
from jaxmoe.meshes.errors import UsageError
from jaxmoe.meshes.strategy import Strategy
from jaxmoe.xla import room
from jaxmoe.xla.measure import measure_step
from jaxmoe.xla.target import Target

NOWHERE = pathlib.Path("nowhere")
D = tiny.deployment(Strategy(expert=2, tensor=2))


@pytest.mark.parametrize("kind", ["train", "prefill", "decode"])
def test_least_bytes_by_hand(kind):
  """Weights, inputs, and two moments with their count or a cache of keys and values; and temporaries."""
  d = tiny.deployment(Strategy(expert=2, tensor=2), kind=kind)
  weights = 4 * (4 * 32 * 32 // 2 + 4 * 3 * 32 * 32 + 32 * 8 + 2 * 32) + 32 + 2 * 256 * 32 // 2
  tokens = 8 if kind == "decode" else 8 * 16
  inputs = 2 * tokens if kind == "train" else tokens + 8
  own = {"train": 2 * weights + 1, "prefill": 0, "decode": 4 * 2 * (8 * 16 * 2 * 8)}[kind]
  assert least_step_bytes(d) == 4 * (weights + inputs + own) + least_temporary_bytes(d)


@pytest.mark.parametrize("target", ["cpu", "local"])
def test_a_run_needs_room_for_all_devices_at_once(target, monkeypatch):
  """On local devices too, where those are the CPU's."""
  monkeypatch.setattr(room, "available_bytes", lambda: 4 * least_step_bytes(D) - 1)
  with pytest.raises(UsageError, match=r"expected at least 0\.0 GB .* = 4 devices, and got 0\.0 GB; run .* --reduced"):
    measure_step(D, Target(platform=target), 1, lambda line: pytest.fail(f"it is {line}"))


@pytest.mark.parametrize("available", [None, 4 * least_step_bytes(D)])
def test_what_may_fit_is_not_refused(available, monkeypatch):
  monkeypatch.setattr(room, "available_bytes", lambda: available)
  room.check_room(D)


def test_a_command_that_a_machine_has_no_room_for_says_so_at_once(tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(room, "available_bytes", lambda: 1 << 40)
  strategy = "strategy: {data: 1, stage: 2, expert: 4, tensor: 2}"
  wide = ("d_model: 64", "d_model: 65536"), ("d_expert: 128", "d_expert: 1048576")
  (tmp_path / "plan.yaml").write_text(edited(*wide, (strategy, "strategy: {data: 1}")))
  assert main(["measure", str(tmp_path / "plan.yaml"), "--target", "cpu", "--steps", "1"]) == ExitCode.USAGE
  out, err = capsys.readouterr()
  assert out == "" and err.count("\n") == 1
  assert err.startswith("jaxmoe: expected at least ") and "use a machine that has more" in err


@pytest.mark.parametrize(
  "limits, available", [([], 2048), (["max\n"], 2048), (["1024\n"], 1024), (["max", "4096"], 2048)]
)
def test_available_memory_is_what_the_system_and_its_limits_leave(limits, available, tmp_path, monkeypatch):
  files = [tmp_path / str(number) for number in range(len(limits))]
  for file, text in zip(files, limits, strict=True):
    file.write_text(text)
  (tmp_path / "meminfo").write_text("MemTotal:  8 kB\nMemAvailable:       2 kB\n")
  monkeypatch.setattr(room, "_MEMORY", tmp_path / "meminfo")
  monkeypatch.setattr(room, "_LIMITS", (*files, NOWHERE))
  assert room.available_bytes() == available
  monkeypatch.setattr(room, "_MEMORY", NOWHERE)
  assert room.available_bytes() is None
