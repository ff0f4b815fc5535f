"""The comparison with torch's step, end to end on a tiny model: it compares equal work, and says what it found."""

import json
import subprocess
import sys

import pytest
from bare_machine import ROOT, bare_environment, write_batch_file

pytest.importorskip("torch", reason="parity needs torch: install the extra `parity`")
pytest.importorskip("transformers", reason="parity needs transformers: install the extra `parity`")

pytestmark = pytest.mark.parity

# Float32 in another order of summation, through the updates of three turns.
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    """What the program wrote where the libraries of pipeline and command line are missing, without dropout."""
    folder = tmp_path_factory.mktemp("bare")
    write_batch_file(folder / "batches.npz")
    command = [
        sys.executable, "-m", "benchmarks.train_step", "--batches", str(folder / "batches.npz"), "--cases",
        "tiny-16,tiny-16x2", "--batch-size", "tiny-16=4,tiny-16x2=4", "--peers", "eager,compiled,stock",
        "--compile-mode", "none such", "--rounds", "2", "--steps", "2", "--dropout", "0",
        "--json", str(folder / "result.json"), "--markdown", str(folder / "result.md"),
    ]  # fmt: skip
    run = subprocess.run(
        command, capture_output=True, text=True, timeout=300, cwd=ROOT, env=bare_environment(folder), check=False
    )
    assert run.returncode == 0, run.stderr
    return json.loads((folder / "result.json").read_text()), run.stdout + (folder / "result.md").read_text()


@pytest.mark.parametrize("case, forms", [("tiny-16", ("eager", "stock")), ("tiny-16x2", ("eager",))])
def test_contenders_have_the_same_losses_before_and_after_their_updates(result, assert_parity, case, forms):
    contenders = result[0]["cases"][case]["contenders"]
    ours = contenders["flaxbert"]
    assert ours["last_loss"] < ours["first_loss"] - 0.01, "twelve updates change what the parameters know"
    for form in forms:
        for moment in ("first_loss", "last_loss"):
            worst = abs(contenders[form][moment] - ours[moment])
            assert_parity("loss before and after twelve timed steps", f"torch's step, {form}", worst, TOLERANCE)


def test_every_number_of_a_case_is_there(result):
    (found, printed), sizes = result, {"batch_size": 4, "length": 16, "predictions": 3, "vocab_size": 90}
    case = found["cases"]["tiny-16"]
    assert case.items() >= (sizes | {"dropout": 0, "compute_dtype": "float32", "peak_flops": None}).items()
    assert 0.5 < case["fill"] < 1 and case["flops_per_step"] > 0 and case["measured_peak_flops"] > 0
    assert found["machine"]["device"] == "cpu" and found["versions"].keys() >= {"jax", "torch", "transformers"}
    assert "--cases tiny-16,tiny-16x2" in found["command"] and found["batches"]["vocab_size"] == 90
    for name in ("flaxbert", "eager", "stock"):
        numbers = case["contenders"][name]
        assert len(numbers["milliseconds_of_each_round"]) == 2 and min(numbers["milliseconds_of_each_round"]) > 0
        assert numbers["sequences_per_second"] > 0 and numbers["teraflops"] > 0
        assert numbers["tokens_per_second"] == pytest.approx(
            numbers["tokens_per_second_with_padding"] * case["fill"]
        )
        assert numbers["mfu"] is None and numbers["peak_memory_bytes"] is None and numbers["share_of_measured_peak"] > 0
        assert numbers["flaxbert_is_faster_by"].keys() == {"medians", "least", "most"}
        assert name in printed


def test_a_peer_that_cannot_run_is_named_with_its_reason_and_the_others_go_on(result):
    found, printed = result
    assert "none such" in found["cases"]["tiny-16"]["contenders"]["compiled"]["failed"]
    assert "compiled   failed: " in printed
    assert "| compiled | failed: " in printed
    assert "one pair to a row" in found["cases"]["tiny-16x2"]["contenders"]["stock"]["failed"]
