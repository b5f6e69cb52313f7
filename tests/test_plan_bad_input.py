"""Bad input to `jaxmoe plan`: exit code 2, one message that names what is wrong, and nothing on stdout."""

import pytest
from plans import PLAN

from jaxmoe.cli.exit_codes import ExitCode
from jaxmoe.cli.main import main

CLUSTER = PLAN[PLAN.index("cluster:\n") + len("cluster:\n") : PLAN.index("strategy:")].replace("\n  ", "\n").lstrip()
GIVEN = {"model": "mixtral-8x7b", "cluster": "dgx_h100", "devices": "8"}

# (options that are changed or added, words that the message must hold)
OPTIONS = {
  "unknown model": ({"model": "mixtral-8x7"}, ["unknown model 'mixtral-8x7'", "did you mean 'mixtral-8x7b'"]),
  "no model": ({"model": ""}, ["unknown model ''"]),
  "model file missing": ({"model": "no/such.yaml"}, ["no/such.yaml", "no such file"]),
  "model is a directory": ({"model": "./"}, ["directory"]),
  "model is a cluster": ({"model": "dgx_h100"}, ["'dgx_h100' is a cluster", "not a model"]),
  "unknown cluster": ({"cluster": "dgx_h10"}, ["unknown cluster 'dgx_h10'", "did you mean 'dgx_h100'"]),
  "cluster file missing": ({"cluster": "no.yaml"}, ["no.yaml", "no such file"]),
  "cluster is a directory": ({"cluster": "./"}, ["directory"]),
  "cluster is a model": ({"cluster": "mixtral-8x7b"}, ["'mixtral-8x7b' is a model", "not a cluster"]),
  "nobody's home": ({"model": "~nobody-at-all/x.yaml"}, ["~nobody-at-all", "nobody's home"]),
  "no devices": ({"devices": "0"}, ["between 1 and the 1024", "got 0", "nearest legal value is 1"]),
  "fewer than no devices": ({"devices": "-1"}, ["got -1", "nearest legal value is 1"]),
  "more devices than there are": ({"devices": "2000"}, ["1024", "dgx_h100", "got 2000", "nearest legal value is 1024"]),
  "absurd devices": ({"devices": f"{2**40}"}, [f"got {2**40}", "nearest legal value is 1024"]),
  "no batch": ({"batch": "0"}, ["--batch", "at least 1", "got 0"]),
  "negative batch": ({"batch": "-8"}, ["--batch", "at least 1", "got -8"]),
  "absurd batch": ({"batch": f"{2**40}"}, ["batch", "16777216", f"got {2**40}"]),
  "no tokens": ({"sequence_length": "0"}, ["--sequence-length", "at least 1", "got 0"]),
  "absurd sequences": ({"sequence_length": f"{2**40}"}, ["sequence length", "16777216", f"got {2**40}"]),
  "too many tokens": (
    {"batch": "1048576", "sequence_length": "1048576"},
    ["1048576 x a sequence length of 1048576", "68719476736 tokens", "nearest legal batch is 65536"],
  ),
  "unknown job": ({"job": "trian"}, ["--job", "train, prefill, decode", "'trian'"]),
  "unknown objective": ({"objective": "fast"}, ["objective", "latency, throughput, devices, cost", "'fast'"]),
  "computing in no dtype": ({"compute": ""}, ["--compute must", "bfloat16"]),
  "unknown transport": ({"transport": "pigeon"}, ["--transport", "ragged", "'pigeon'"]),
  "no capacity": ({"capacity_factor": "0"}, ["capacity_factor", "above 0", "got 0"]),
  "negative capacity": ({"capacity_factor": "-1"}, ["capacity_factor", "above 0", "got -1"]),
  "capacity is no number": ({"capacity_factor": "nan"}, ["capacity_factor", "above 0", "got nan"]),
  "boundless capacity": ({"capacity_factor": "inf", "transport": "capacity"}, ["capacity_factor", "finite", "got inf"]),
  "less load than balanced": ({"load": "0.5"}, ["load", "at least 1", "balanced", "got 0.5"]),
  "load is no number": ({"load": "nan"}, ["load", "at least 1", "got nan"]),
  "more load than experts": ({"load": "8.5"}, ["load", "at most 8", "got 8.5"]),
  "boundless load": ({"load": "inf"}, ["load", "at most 8", "got inf"]),
  "hides more than there is": ({"dispatch_overlap": "1.5"}, ["dispatch_overlap", "[0, 1]", "got 1.5"]),
  "hides less than nothing": ({"dispatch_overlap": "-0.1"}, ["dispatch_overlap", "[0, 1]", "got -0.1"]),
  "hides no number": ({"gradient_overlap": "nan"}, ["gradient_overlap", "[0, 1]", "got nan"]),
  "time without unit": ({"max_step": "10"}, ["--max-step", "10s or 250ms", "'10'"]),
  "negative time": ({"max_step": "-1s"}, ["--max-step", "10s or 250ms", "'-1s'"]),
  "no time": ({"max_step": "0s"}, ["--max-step must", "above 0", "got 0s; give"]),
  "no time to the first token": ({"job": "prefill", "max_ttft": "0s"}, ["--max-ttft must", "above 0", "got 0s; give"]),
  "time is no number": ({"job": "prefill", "max_ttft": "nans"}, ["--max-ttft", "10s or 250ms", "'nans'"]),
  "time to no first token": ({"job": "decode", "max_ttft": "1s"}, ["--max-ttft", "prefill", "decode", "--max-step"]),
  "one time too many": ({"job": "prefill", "max_ttft": "1s", "max_step": "1s"}, ["--max-step", "--max-ttft", "both"]),
  "time in parsecs": ({"max_step": "5 parsecs"}, ["us, ms, s, min, h", "'5 parsecs'"]),
  "empty time": ({"max_step": ""}, ["--max-step", "''"]),
  "no rate": ({"min_tokens_per_ms": "0"}, ["--min-tokens-per-ms", "above 0", "got 0"]),
  "negative rate": ({"min_tokens_per_ms": "-3"}, ["--min-tokens-per-ms", "above 0", "got -3"]),
  "rate is no number": ({"min_tokens_per_ms": "nan"}, ["--min-tokens-per-ms", "above 0", "got nan"]),
  "boundless rate": ({"min_tokens_per_ms": "inf"}, ["--min-tokens-per-ms", "finite", "got inf"]),
  "memory without unit": ({"reserve": "4"}, ["--reserve", "4GB or 512MiB", "'4'"]),
  "negative memory": ({"reserve": "-4GB"}, ["--reserve", "4GB or 512MiB", "'-4GB'"]),
  "computing in 8 bits": ({"compute": "float8_e4m3fn"}, ["--compute must", "bfloat16", "'float8_e4m3fn'"]),
  "unknown dtype": ({"compute": "bf16"}, ["--compute must", "bfloat16", "'bf16'"]),
  "unknown weights": ({"weights": "int4"}, ["--weights must", "float8_e4m3fn", "'int4'"]),
  "gradients of what is served": ({"job": "decode", "gradients": "float32"}, ["--gradients", "--job train", "decode"]),
  "a copy of what is served": ({"job": "prefill", "master": "float32"}, ["--master", "--job train", "prefill"]),
  "a copy in no dtype": ({"master": "fp32"}, ["--master must", "float32", "'fp32'"]),
  "training in 8 bits": ({"weights": "float8_e4m3fn"}, ["weights to train", "float32", "only read"]),
}  # fmt: skip

CLUSTERS = {
  "no tier": (CLUSTER[: CLUSTER.index("  - {name: link") - len("tiers:\n")], ["tiers", "missing"]),
  "empty tiers": (CLUSTER[: CLUSTER.index("tiers:")] + "tiers: []\n", ["tiers", "at least 1"]),
  "no peak for the job": (CLUSTER.replace("{bfloat16: 100e12}", "{float32: 100e12}"), ["peak", "bfloat16", "float32"]),
  "a small tier": (CLUSTER.replace("link, devices: 16", "link, devices: 8"), ["tier", "8", "16"]),
  "no cluster": ("", ["mapping", "nothing"]),
}  # fmt: skip

COMMAND_LINES = {
  "words for a number": (["--devices", "eight"], ["--devices"]),
  "a fraction of devices": (["--devices", "1.5"], ["--devices"]),
  "beyond what Python reads": (["--devices", "1" + "0" * 5000], ["--devices"]),
  "no number of tokens": (["--min-tokens-per-ms", "x"], ["--min-tokens-per-ms"]),
  "no plans to show": (["--top", "0"], ["--top"]),
  "too many plans to show": (["--top", "101"], ["--top"]),
  "unknown option": (["--devcies", "8"], ["--devcies"]),
  "one word too many": (["deepseek-v3"], ["deepseek-v3"]),
}  # fmt: skip


def command(changes):
  options = {**GIVEN, **changes}
  return ["plan", *(text for name, value in options.items() for text in (f"--{name.replace('_', '-')}", value))]


@pytest.fixture
def refused(tmp_path, monkeypatch, capsys):
  """Runs a command line in an empty folder and gives its message, having checked the rest."""
  monkeypatch.chdir(tmp_path)
  monkeypatch.delenv("JAXMOE_DEBUG", raising=False)

  def run(argv):
    code = main(argv)
    out, err = capsys.readouterr()
    assert code == ExitCode.USAGE == 2, err
    assert out == "" and "Traceback" not in err
    return err

  return run


@pytest.mark.parametrize("as_json", [[], ["--json"]], ids=["tables", "json"])
@pytest.mark.parametrize("case", OPTIONS)
def test_a_bad_option(case, as_json, refused):
  changes, words = OPTIONS[case]
  message = refused([*command(changes), *as_json])
  assert message.count("\n") == 1 and message.startswith("jaxmoe: ") and len(message) < 700
  assert all(word in message for word in words), message


@pytest.mark.parametrize("case", CLUSTERS)
def test_a_bad_cluster(case, tmp_path, refused):
  text, words = CLUSTERS[case]
  (tmp_path / "cluster.yaml").write_text(text)
  message = refused(command({"cluster": "./cluster.yaml"}))
  assert message.count("\n") == 1 and message.startswith("jaxmoe: ")
  assert all(word in message for word in words), message


def test_the_cluster_itself_is_good(tmp_path):
  (tmp_path / "cluster.yaml").write_text(CLUSTER)
  assert main(command({"cluster": str(tmp_path / "cluster.yaml"), "job": "decode", "weights": "float8_e4m3fn"})) == 0


@pytest.mark.parametrize("case", COMMAND_LINES)
def test_a_bad_command_line(case, refused):
  argv, words = COMMAND_LINES[case]
  message = refused([*command({}), *argv])
  assert message.count("Error:") == 1
  assert all(word in message for word in words), message


def test_what_cannot_run_is_not_runnable(refused):
  message = refused([*command({"transport": "ragged"}), "--runnable"])
  assert message.count("\n") == 1 and all(word in message for word in ("--transport ragged", "capacity, gather, dense"))


def test_models_that_cannot_run_are_not_runnable(refused):
  model = "phi-3.5-moe"
  message = refused(["plan", "--model", model, "--cluster", "dgx_h100", "--devices", "8", "--runnable"])
  assert message.count("\n") == 1
  assert all(words in message for words in (model, "can be planned but not run: it has", "leave --runnable out"))


@pytest.mark.parametrize(
  ("option", "words"), [("master", "a master copy of the weights"), ("gradients", "gradients in a dtype of their own")]
)
def test_dtypes_that_cannot_run_are_not_runnable(option, words, refused):
  message = refused([*command({"job": "train", "weights": "bfloat16", option: "float32"}), "--runnable"])
  assert message.count("\n") == 1 and words in message and "leave --runnable out" in message


@pytest.mark.parametrize("missing", GIVEN)
def test_an_option_that_must_be_given(missing, refused):
  given = [text for name, value in GIVEN.items() if name != missing for text in (f"--{name}", value)]
  assert f"--{missing}" in refused(["plan", *given])


@pytest.mark.parametrize(
  "impossible",
  [{"max_step": "1us"}, {"min_tokens_per_ms": "1e12"}, {"reserve": "80GB"}, {"reserve": "999TB"}],
  ids=str,
)  # fmt: skip
def test_a_limit_that_nothing_keeps_is_no_bad_input(impossible, capsys):
  assert main(command({"job": "decode", "batch": "8", **impossible})) == ExitCode.NO_PLAN == 3
  out, err = capsys.readouterr()
  assert out.startswith("no plan: ") and err == ""
