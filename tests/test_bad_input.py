"""Bad input through the real command line: exit code 2, one message that helps, and nothing else anywhere."""

import os
import subprocess
import sys

import pytest
from plans import PLAN, edited

from jaxmoe.cli.exit_codes import ExitCode
from jaxmoe.cli.main import main
from jaxmoe.report import placement

# (edit of a valid plan, words that the message must hold: field, expected, got and the nearest legal value)
PLANS = {
  "unknown key": (("expert: 4,", "exprt: 4,"), ["strategy.exprt", "unknown key", "did you mean 'expert'"]),
  "unknown top key": (("job:", "jobs:"), ["jobs", "unknown key", "did you mean 'job'"]),
  "unknown model key": (("d_expert:", "d_expret:"), ["model.d_expret", "did you mean 'd_expert'"]),
  "unknown tier key": (("latency_s:", "latency:"), ["cluster.tiers[0].latency", "did you mean 'latency_s'"]),
  "unknown claim key": (("unit:", "units:"), ["claims[0].units", "did you mean 'unit'"]),
  "missing key": (("  num_layers: 4\n", ""), ["model.num_layers is missing"]),
  "missing version": (("schema_version: 1\n", ""), ["schema_version is missing"]),
  "later version": (("schema_version: 1", "schema_version: 2"), ["schema_version", "expected 1", "got 2"]),
  "version true": (("schema_version: 1", "schema_version: true"), ["schema_version", "whole number", "true"]),
  "text for number": (("expert: 4,", "expert: '4',"), ["strategy.expert", "whole number", "'4'", "quotes"]),
  "word for number": (("expert: 4,", "expert: four,"), ["strategy.expert", "whole number", "'four'"]),
  "true for number": (("expert: 4,", "expert: true,"), ["strategy.expert", "whole number", "true"]),
  "fraction for number": (("expert: 4,", "expert: 3.7,"),
    ["strategy.expert", "whole number", "3.7", "write 4"]),
  "nothing for number": (("expert: 4,", "expert: ,"), ["strategy.expert", "whole number", "nothing"]),
  "list for number": (("expert: 4,", "expert: [4],"), ["strategy.expert", "whole number", "a list"]),
  "zero": (("expert: 4,", "expert: 0,"),
    ["strategy.expert", "at least 1", "got 0", "nearest in range is 1"]),
  "negative": (("batch: 16", "batch: -16"), ["job.batch", "at least 1", "-16", "nearest in range is 1"]),
  "absurd": (("batch: 16", "batch: 1" + "0" * 40), ["job.batch", "at most 16777216", "digits"]),
  "list for mapping": (("strategy: {data: 1, stage: 2, expert: 4, tensor: 2}", "strategy: [1, 2]"),
                       ["strategy", "expected a mapping", "a list"]),
  "mapping for list": (("  - {name: devices,", "  {name: devices,"),
    ["claims", "expected a list", "a mapping"]),
  "number for model": (("title: A tiny plan", "title: 3"), ["title", "expected text", "got 3"]),
  "two lines in title": (("title: A tiny plan", 'title: "a\\nb"'), ["title", "one line"]),
  "name with slash": (("name: tiny", "name: ../tiny"), ["name", "'../tiny'"]),
  "unknown kind": (("kind: train", "kind: trian"),
    ["job.kind", "'train'", "'prefill'", "did you mean 'train'"]),
  "unknown remat": (("microbatches: 2", "remat: fully"), ["job.remat", "'full'", "'fully'"]),
  "unknown dtype": (("microbatches: 2", "precision: {compute: bf16}"),
                    ["job.precision.compute", "bfloat16", "'bf16'", "did you mean 'bfloat16'"]),
  "dtype without peak": (("microbatches: 2", "precision: {compute: float16}"),
                         ["job.precision.compute", "bfloat16", "'float16'", "lab"]),
  "computing in 8 bits": (("microbatches: 2", "precision: {compute: float8_e4m3fn}"),
    ["job.precision.compute: expected one of float64, float32, bfloat16, float16, got", "only read"]),
  "optimizer in 8 bits": (("microbatches: 2", "precision: {optimizer: float8_e4m3fn}"),
    ["job.precision.optimizer: expected one of float64, float32, bfloat16, float16, got", "only read"]),
  "training weights of 8 bits": (("microbatches: 2", "precision: {weights: float8_e4m3fn}"),
    ["job.precision.weights: expected one of float64, float32, bfloat16, float16 in a train job", "decode"]),
  "abbreviated peak": (("{bfloat16: 100e12}", "{bf16: 100e12}"),
    ["cluster.peak_flops_per_s.bf16: expected one of float64", "did you mean 'bfloat16'"]),
  "unknown peak": (("{bfloat16: 100e12}", "{bfloat61: 100e12}"),
    ["peak_flops_per_s", "did you mean 'bfloat16'"]),
  "no peak": (("{bfloat16: 100e12}", "{}"), ["cluster.peak_flops_per_s"]),
  "peak of nothing to compute in": (("{bfloat16: 100e12}", "{float8_e4m3fn: 100e12}"),
    ["job.precision.compute: expected a dtype which", "got the text 'bfloat16'; add its peak"]),
  "no peak to multiply with": (("microbatches: 2}", "microbatches: 2, precision: {matmuls: float8_e4m3fn}}"),
    ["job.precision.matmuls: expected one of bfloat16, which cluster lab has a peak for", "'float8_e4m3fn'"]),
  "share above one": (("matmul_efficiency: 0.5", "matmul_efficiency: 50"),
                      ["cluster.matmul_efficiency", "at most 1", "50", "nearest in range is 1"]),
  "absurd, beyond what Python reads": (("batch: 16", "batch: 1" + "0" * 5000),
    ["job.batch", "at most 16777216", "digits"]),
  "absurd version": (("schema_version: 1", "schema_version: " + "7" * 4200),
    ["schema_version", "expected 1", "digits"]),
  "infinite": (("100e12", "1e999"), ["cluster.peak_flops_per_s", "finite"]),
  "capacity": (("microbatches: 2", "capacity_factor: 0"), ["job.capacity_factor", "above 0", "got 0"]),
  "heads over": (("tensor: 2}", "tensor: 2, heads_over: [data]}"),
    ["strategy.heads_over", "[expert, tensor]", "data"]),
  "repeated attention": (("tensor: 2}", "tensor: 2, heads_over: [expert]}"),
    ["strategy.heads_over", "repeated", "tensor: 1"]),
  "too many devices": (("data: 1,", "data: 2,"),
    ["2 data x 2 stage x 4 expert x 2 tensor = 32 devices", "16",
     "nearest legal strategy.expert is 2"]),
  "layers over stages": (("num_layers: 4", "num_layers: 5"),
    ["model.num_layers=5", "multiple of stage = 2", "strategy.stage is 1", "model.num_layers is 6"]),
  "experts over experts": (("num_experts: 8", "num_experts: 6"),
    ["model.num_experts=6", "expert = 4", "strategy.expert is 2", "model.num_experts is 8"]),
  "heads over tensor": (("num_heads: 4", "num_heads: 3"),
    ["model.num_heads=3", "tensor = 2", "model.num_heads is 4 with model.num_kv_heads 4"]),
  "batch over devices": (("batch: 16", "batch: 15"), ["job.batch=15", "expert = 4", "job.batch is 16"]),
  "microbatches": (("microbatches: 2", "microbatches: 3"),
    ["job.microbatches=3", "4 sequences", "nearest legal job.microbatches is 4"]),
  "more experts than there are": (("experts_per_token: 2", "experts_per_token: 9"),
    ["experts_per_token", "num_experts=8", "got 9", "nearest legal model.experts_per_token is 8"]),
  "odd head": (("head_dim: 16", "head_dim: 15"), ["head_dim", "even", "got 15", "nearest legal model.head_dim is 16"]),
  "small tier": (("name: link, devices: 16", "name: link, devices: 8"), ["tier", "8", "16"]),
  "syntax": (("batch: 16", "batch: [16"), ["YAML", "line"]),
  "twice": (("stage: 2,", "stage: 2, stage: 2,"), ["line 24", "'stage'", "twice"]),
  "alias": (("stage: 2,", "stage: &two 2,"), ["line 24", "anchors"]),
}  # fmt: skip

MODEL = PLAN[PLAN.index("model:\n") : PLAN.index("cluster:\n")]
CLUSTER = PLAN[PLAN.index("cluster:\n") : PLAN.index("strategy:")]
REFERENCES = {
  "model name": ((MODEL, "model: mixtral-8x7\n"),
    ["unknown model 'mixtral-8x7'", "did you mean 'mixtral-8x7b'"]),
  "model path": ((MODEL, "model: no/such.yaml\n"), ["no/such.yaml", "no such file"]),
  "model number": ((MODEL, "model: 3\n"), ["model", "name, a path or a mapping", "got 3"]),
  "model is this plan": ((MODEL, "model: ./plan.yaml\n"), ["model", "model's file", "a deployment's"]),
  "cluster name": ((CLUSTER, "cluster: dgx_h10\n"), ["unknown cluster 'dgx_h10'", "did you mean 'dgx_h100'"]),
  "dense family": ((MODEL, "model: {model_type: llama}\n"),
    ["model: model_type", "qwen3_moe, olmoe, deepseek_v2", "'llama'", "no Mixture-of-Experts model"]),
  "cluster is a model": ((CLUSTER, "cluster: mixtral-8x7b\n"), ["'mixtral-8x7b' is a model", "not a cluster"]),
}  # fmt: skip

FILES = {
  "empty": (b"", ["mapping", "nothing"]),
  "binary": (b"\x7fELF\x02\x01\x01\x00\xff\xfe", ["UTF-8"]),
  "list": (b"- 1\n- 2\n", ["mapping", "a list"]),
  "huge": (b"a" * (2 << 20), ["1048576 bytes"]),
  "deep": (b"a: " + b"[" * 50_000, ["nested too deeply"]),
  "python": (b"a: !!python/object/apply:os.system ['touch owned']", ["YAML"]),
}


@pytest.fixture
def refused(tmp_path, monkeypatch, capsys):
  """Runs a command line in an empty folder and gives its message, having checked the rest."""
  monkeypatch.chdir(tmp_path)
  monkeypatch.delenv("JAXMOE_DEBUG", raising=False)

  def run(*argv):
    before = sorted(tmp_path.rglob("*"))
    code = main(list(argv))
    out, err = capsys.readouterr()
    assert code == ExitCode.USAGE == 2, err
    assert out == "" and "Traceback" not in err
    assert err.count("\n") == 1 and err.startswith("jaxmoe: ") and err[:-1].isprintable() and len(err) < 700
    assert sorted(tmp_path.rglob("*")) == before
    return err

  return run


def assert_words(message, words):
  assert all(word in message for word in words), message


def test_the_plan_itself_is_good(tmp_path, capsys):
  (tmp_path / "plan.yaml").write_text(PLAN)
  assert main(["place", str(tmp_path / "plan.yaml")]) == 0
  assert capsys.readouterr().err == ""


@pytest.mark.parametrize("case", [*PLANS, *REFERENCES])
def test_a_bad_plan(case, tmp_path, refused):
  edit, words = {**PLANS, **REFERENCES}[case]
  (tmp_path / "plan.yaml").write_text(edited(edit))
  assert_words(refused("place", "plan.yaml"), ["plan.yaml: ", *words])


@pytest.mark.parametrize("verb", [["place"], ["model", "show"]], ids=" ".join)
def test_a_key_that_cannot_be_printed_is_escaped(verb, tmp_path, refused):
  (tmp_path / "file.json").write_text('{"a\\ud800b": 1}')
  assert_words(refused(*verb, "file.json"), ["key 'a\\ud800b'", "surrogate"])


@pytest.mark.parametrize("case", FILES)
@pytest.mark.parametrize("verb", [["place"], ["model", "show"]], ids=" ".join)
def test_a_bad_file(case, verb, tmp_path, refused):
  content, words = FILES[case]
  (tmp_path / "file.yaml").write_bytes(content)
  assert_words(refused(*verb, "file.yaml"), ["file.yaml: ", *words])


@pytest.mark.parametrize(
  "argv, words",
  [
    (["place", "nowhere.yaml"], ["nowhere.yaml", "no such file"]),
    (["place", "./"], ["directory"]),
    (["place", "ep46_tp2"], ["unknown deployment 'ep46_tp2'", "did you mean 'ep64_tp2'", "tp4_ep4_pp4"]),
    (["place", "mixtral-8x7b"], ["'mixtral-8x7b' is a model", "model show", "not a deployment", "tp4_ep4_pp4"]),
    (["estimate", "mixtral-8x7b"], ["'mixtral-8x7b' is a model", "model show", "not a deployment"]),
    (["place", "\x1b[31mred\n"], ["unknown deployment '\\x1b[31mred\\n'"]),
    (["place", ""], ["unknown deployment ''"]),
    (["model", "show", "gpt-9"], ["unknown model 'gpt-9'", "mixtral-8x7b"]),
    (["model", "show", "/dev/zero.json"], ["no such file"]),
    (["place", "x" * 5000 + ".yaml"], ["cannot be read"]),
    (["verify", "ep64_tp2", "--timeout", "0s"], ["--timeout must be above 0", "got 0s", "10s or 250ms"]),
    (["verify", "all", "--timeout", "0.00min"], ["--timeout must be above 0", "got 0.00min", "10s or 250ms"]),
    (["verify", "ep64_tp2", "--timeout", "-1s"], ["--timeout: expected a time such as 10s", "'-1s'"]),
  ],
)  # fmt: skip
def test_a_bad_argument(argv, words, refused):
  assert_words(refused(*argv), words)


@pytest.mark.parametrize(
  "argv, words",
  [
    (["plac", "ep64_tp2"], ["plac", "place"]),
    (["place"], ["DEPLOYMENT"]),
    (["place", "ep64_tp2", "--jsn"], ["--jsn", "--json"]),
    (["place", "ep64_tp2", "more"], ["more"]),
    (["model", "shwo", "x"], ["shwo", "show"]),
  ],
)  # fmt: skip
def test_a_bad_command_line(argv, words, capsys):
  assert main(argv) == ExitCode.USAGE
  out, err = capsys.readouterr()
  assert out == "" and err.count("Error:") == 1 and "Traceback" not in err
  assert_words(err, words)


def jaxmoe(*argv, cwd, **kwargs):
  environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **kwargs}
  command = [sys.executable, "-m", "jaxmoe", *argv]
  return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.parametrize(
  "argv", [["place", "ep46_tp2"], ["model", "show", "plan.yaml"], ["place", "plan.yaml"]], ids=" ".join
)
def test_a_process_fails_the_same_way(argv, tmp_path):
  (tmp_path / "plan.yaml").write_text(edited(PLANS["unknown key"][0]))
  done = jaxmoe(*argv, cwd=tmp_path)
  assert (done.returncode, done.stdout) == (2, "")
  assert done.stderr.startswith("jaxmoe: ") and done.stderr.count("\n") == 1
  assert [path.name for path in tmp_path.iterdir()] == ["plan.yaml"]


def test_debug_adds_the_traceback(tmp_path):
  done = jaxmoe("place", "ep46_tp2", cwd=tmp_path, JAXMOE_DEBUG="1")
  assert done.returncode == 2 and "Traceback" in done.stderr


def test_a_closed_pipe_is_quiet(tmp_path):
  script = f'set -o pipefail; "{sys.executable}" -m jaxmoe place tp8_pp4_ep4_dp4 --json | true'
  environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
  done = subprocess.run(
    ["bash", "-c", script],
    cwd=tmp_path,
    env=environment,
    capture_output=True,
    text=True,
    check=False,
    timeout=60,
  )
  assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_an_internal_error_is_named_without_a_traceback(monkeypatch, capsys):
  def broken(_):
    raise KeyError("oops")

  monkeypatch.delenv("JAXMOE_DEBUG", raising=False)
  monkeypatch.setattr(placement, "placements", broken)
  assert main(["place", "ep64_tp2"]) == ExitCode.INTERNAL_ERROR == 1
  out, err = capsys.readouterr()
  assert out == "" and "KeyError" in err and "report" in err and err.count("\n") == 1
