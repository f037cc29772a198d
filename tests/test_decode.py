"""Token loops through the real command line, on a tiny model."""

from pathlib import Path

from tests.command_line import TINY, bench, from_readme, in_process, results


def test_a_compiled_step_is_measured_beside_the_loop(tmp_path: Path) -> None:
    command = from_readme("python -m bench -m decode=loop,compiled quant=bf16,int4_g64")
    rest = [*TINY, "quant=int4_g64", "quality=none", "tracking=none"]
    compiled = str(tmp_path / "compiled")
    words = [word for word in command if not word.startswith("quant")]
    done = bench(tmp_path, *words, *rest, TORCHINDUCTOR_CACHE_DIR=compiled)
    assert done.returncode == 0, done.stderr
    found = {r.cell.decode.name: r for r in results(tmp_path)}
    assert len(found) == 2
    for decode, result in found.items():
        assert result.attestation is not None
        details = result.attestation.details.get("decode", {})
        assert details.get("graphs") == (1 if decode == "compiled" else None)
        assert details.get("recompilations", 0) == 0
    ready_s = {name: of.measurements[0].ready_s for name, of in found.items()}
    assert ready_s["compiled"] > ready_s["loop"]
    assert any(Path(compiled).iterdir())


def test_guesses_are_tokens_a_forward_and_a_batch_is_skipped(tmp_path: Path) -> None:
    own = ("decode=prompt_lookup", "workload=rewrite", "batch=1,2", "quant=fp32", "tracking=none")
    short = [word for word in TINY if not word.startswith("workload")]
    done = in_process(tmp_path, "-m", *short, *own, "quality=none")
    assert done.returncode == 0, done.stderr
    alone, batch = results(tmp_path)
    assert batch.outcome.status == "skipped"
    assert "advances each row by another count: batch=1" in str(batch.outcome.reason)
    (measurement,) = alone.measurements
    assert {repeat.decoded_tokens for repeat in measurement.repeats} == {79}
    said = " ".join(done.stdout.split())
    assert "tokens a forward, of which the plain loop has 1" in said
