"""A quarter of an hour on one GPU, rehearsed on the CPU at toy size: everything recorded, in time, and taken back."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from robattr.studies import gpu
from robattr.studies.grids import load_grid, load_records, run_record
from robattr.studies.trainings import Training, run_training
from robattr.training import Compute

CPU = Compute(accelerator="cpu")
TRAINED: dict[str, Any] = {
    "description": "Digits, for a moment.",
    "training": {
        "dataset": "digits",
        "images": 64,
        "validation": 50,
        "model": "digits-mlp",
        "schedule": {"epochs": 2, "batch_size": 32, "policy": "one-cycle", "learning_rate": 0.01, "augment": False},
    },
    "objectives": {"l2+cosine": None, "cross-entropy": None},
    "seeds": [0, 3],
    "alignment": {
        "dataset": "digits", "images": 6, "epsilons": [8], "draws": 1, "methods": ["integrated_gradients"],
        "method_images": 2, "method_draws": 1, "manipulated": 2, "manipulation_iterations": 2, "frame": 1,
        "fractions": 4,
    },
}  # fmt: skip


@pytest.fixture
def grids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """A grid of trainings, and one of attacks on its records."""
    monkeypatch.chdir(tmp_path)
    trained, attacked = Path("trained.yaml"), Path("attacked.yaml")
    trained.write_text(yaml.safe_dump(TRAINED, sort_keys=False))
    content = {
        "description": "attacks",
        "trainings": {"of": "trained", "objectives": ["l2+cosine"]},
        "fragility": {"dataset": "digits", "images": 2, "attacks": ["random-sign"], "k": 5, "cost": True},
    }
    attacked.write_text(yaml.safe_dump(content, sort_keys=False))
    return [trained, attacked]


def packed(folder: str, grids: list[Path]) -> set[str]:
    names: set[str] = set()
    for path in gpu.pack(folder, grids):
        with tarfile.open(path) as archive:
            names |= set(archive.getnames())
    return names


def test_everything_is_recorded_and_a_second_time_nothing_is_done(grids: list[Path]) -> None:
    lines: list[str] = []
    assert gpu.within(grids, 5, workers=1, together=3, compute=CPU, say=lines.append) == []
    trained = load_records("trained")
    assert [r.name for r in trained] == ["cross-entropy-0", "cross-entropy-3", "l2+cosine-0", "l2+cosine-3"]
    grid = load_grid(grids[0])
    for record in trained:
        assert record.training is not None
        assert record.network == grid.networks[record.name]
        record.load_model("trained")
        assert "cost/step" not in record.values
        # The same training as one alone.
        alone = run_training(record.training, root="alone", compute=CPU, progress=False)
        assert [e.total for e in alone.history] == [e.total for e in record.history]
    # What is attacked are the weights that are kept.
    assert [r.weights for r in load_records("attacked")] == [r.weights for r in trained[2:]]
    assert not any("cost/step" in r.values for r in load_records("attacked"))
    # Seeds of the first objective come first, as many at once as asked.
    order = [line.split("] ")[1].split(":")[0] for line in lines if "trained in" in line]
    assert order == ["l2+cosine, seed 0", "l2+cosine, seed 3", "cross-entropy, seed 0", "cross-entropy, seed 3"]

    before = {path: path.stat().st_mtime_ns for path in Path().rglob("*.json")}
    assert gpu.within(grids, 5, workers=1, compute=CPU, say=lambda line: None) == []
    assert {path: path.stat().st_mtime_ns for path in Path().rglob("*.json")} == before

    names = packed("out", grids)
    assert {"trained/l2+cosine-3.json", "trained/l2+cosine-3.jsonl", "trained/weights/l2+cosine-3.safetensors"} <= names
    assert "attacked/l2+cosine-0.jsonl" in names
    assert not any("training-" in name or "lock" in name for name in names)
    # A training whose record is not made yet is not lost.
    Path("trained/l2+cosine-3.json").unlink()
    (added,) = {name.split("/")[1] for name in packed("again", grids) if "training-" in name}
    assert grid.networks["l2+cosine-3"].training is not None
    assert added == f"training-{grid.networks['l2+cosine-3'].training.key}"


def test_nothing_is_trained_whose_records_are_there(grids: list[Path]) -> None:
    grid = load_grid(grids[0])
    for name in grid.networks:
        run_record(grid, name, Path("trained") / f"{name}.json", compute=CPU, progress=False, timed=False)
    shutil.rmtree("runs")  # on another machine, which has the records alone
    assert gpu.within(grids[:1], 5, workers=1, compute=CPU, say=lambda line: None) == []
    assert not Path("runs").exists()
    Path("trained/cross-entropy-3.jsonl").unlink()  # half a record is none
    lines: list[str] = []
    assert gpu.within(grids, 5, workers=1, compute=CPU, say=lines.append) == []
    assert [line.split("] ")[1].split(":")[0] for line in lines if "trained in" in line] == ["cross-entropy, seed 3"]
    # What was attacked without a training are the weights that are kept.
    kept = [record.weights for record in load_records("trained") if record.name.startswith("l2+cosine")]
    assert [record.weights for record in load_records("attacked")] == kept


def test_networks_that_no_record_keeps_are_trained_for_another_grid(grids: list[Path]) -> None:
    lines: list[str] = []
    assert gpu.within(grids[1:], 5, workers=1, compute=CPU, say=lines.append) == []
    assert sum("trained in" in line for line in lines) == 2
    assert len(load_records("attacked")) == 2


def test_what_cannot_be_made_is_named_and_leaves_the_others(
    grids: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ROBATTR_DATA", str(tmp_path / "none"))
    far, pictures = Path("far.yaml"), Path("pictures.yaml")
    training = TRAINED["training"] | {"dataset": "tiny-imagenet-100", "model": "resnet18-cifar"}
    measured = TRAINED["alignment"] | {"dataset": "tiny-imagenet-100"}
    far.write_text(yaml.safe_dump(TRAINED | {"training": training, "alignment": measured}, sort_keys=False))
    fragility = {"dataset": "folder:photographs", "images": 2, "attacks": ["random-sign"], "k": 5}
    content = {"description": "p", "networks": {"one": {"model": "efficientnet-lite0"}}, "fragility": fragility}
    pictures.write_text(yaml.safe_dump(content))
    run_trainings = gpu.run_trainings

    def failing(wave: list[Training], **options: Any) -> dict[str, Exception]:
        if wave[0].objective == "l2+cosine":
            raise RuntimeError("out of\nsomething")
        return run_trainings(wave, **options)

    monkeypatch.setattr(gpu, "run_trainings", failing)
    words = ["run", "--accelerator", "cpu", "--workers", "1", "--together", "2"]
    assert gpu.main([*words, "far.yaml", "pictures.yaml", "trained.yaml"]) == 1
    found = capsys.readouterr()
    first, second = found.err.splitlines()
    assert first.startswith("robattr: far.yaml: none of its 4 runs without a record can be made: ")
    assert "tiny-imagenet" in first
    assert second.startswith("robattr: pictures.yaml: none of its 1 runs without a record can be made: ")
    assert "photographs" in second
    assert "2 trainings failed: RuntimeError: out of something" in found.out
    assert {record.name for record in load_records("trained")} == {"cross-entropy-0", "cross-entropy-3"}


def test_time_that_is_over_leaves_what_is_there(grids: list[Path]) -> None:
    began = time.monotonic()
    left = gpu.within(grids, 1e-9, workers=1, compute=CPU, say=lambda line: None)
    assert time.monotonic() - began < 30
    assert left == [
        "trained/l2+cosine-0", "trained/cross-entropy-0", "trained/l2+cosine-3", "trained/cross-entropy-3",
        "attacked/l2+cosine-0", "attacked/l2+cosine-3",
    ]  # fmt: skip


def test_a_rate_is_chosen_on_validation_images(grids: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    words = ["rates", "--accelerator", "cpu", "trained.yaml", "1e-6", "0.02", "--images", "64", "--validation", "50"]
    assert gpu.main([*words, "--output", "rates.json"]) == 0
    found = json.loads(Path("rates.json").read_text())
    assert set(found["rates"]) == {"1e-06", "0.02"}
    assert found["best"] == 0.02
    assert found["rates"]["0.02"]["last"] > found["rates"]["1e-06"]["last"]
    assert found["training"]["objective"] == "cross-entropy"
    # What is not said is the grid's.
    assert gpu.main(["rates", "--accelerator", "cpu", "trained.yaml", "0.02", "--output", "own.json"]) == 0
    own = json.loads(Path("own.json").read_text())
    assert (own["training"]["images"], own["training"]["validation"], own["images"]) == (64, 50, 64)
    assert own["rates"]["0.02"]["last"] == found["rates"]["0.02"]["last"]
    with pytest.raises(ValueError, match="no rate could be trained with: value cannot be converted"):
        gpu.rates(load_grid(grids[0]), [1e300], compute=CPU, say=lambda line: None)


def test_a_record_of_another_configuration_is_none(grids: list[Path]) -> None:
    first = load_grid(grids[0])
    name = "cross-entropy-0"
    run_record(first, name, Path("trained") / f"{name}.json", compute=CPU, progress=False, timed=False)

    def missing() -> list[str]:
        return gpu.within(grids[:1], 1e-9, workers=1, compute=CPU, say=lambda line: None)

    assert f"trained/{name}" not in missing()
    for change in ({"alignment": TRAINED["alignment"] | {"draws": 2}}, {"training": TRAINED["training"] | {"beta": 4}}):
        grids[0].write_text(yaml.safe_dump(TRAINED | change, sort_keys=False))
        assert f"trained/{name}" in missing()


def test_what_is_wrong_is_said_in_a_line_before_work_starts(
    grids: list[Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    run, rates, precision = ["run", "trained.yaml"], ["rates", "trained.yaml"], ["precision", "trained.yaml"]
    Path("folder").mkdir()
    wrong = [
        *(([*run, "--minutes", each], "minutes is") for each in ("inf", "nan", "0", "-3", "1e12")),
        ([*run, "--minutes", "soon"], "invalid float value: 'soon'"),
        ([*run, "--together", "0"], "together is 0; accepted is a whole number from 1"),
        ([*run, "--workers", "0"], "workers is 0"),
        (["run", "trained.yaml", "none.yaml"], "none.yaml"),
        *(([*each, "--accelerator", "cuda"], "no CUDA device is here") for each in (run, [*rates, "1"], precision)),
        ([*run, "--accelerator", "gpu"], "accelerator is gpu; no CUDA device is here"),
        ([*run, "--accelerator", "abacus"], "accepted are auto, cpu, cuda and gpu"),
        *(([*rates, "0.01", each], "accepted are numbers > 0") for each in ("0", "nan", "inf")),
        ([*rates, "--", "0.01", "-1"], "rates has -1"),
        ([*rates, "0.01", "0.0100000001"], "rates has 0.01 twice"),
        ([*rates, "0.01", "--images", "0"], "images is 0: "),
        ([*precision, "--output", "folder"], "--output is folder; accepted is a file"),
        (["walk"], "invalid choice: 'walk'"),
    ]
    for words, part in wrong:
        assert gpu.main(words) == 2, words
        found = capsys.readouterr()
        assert found.out == "", words
        assert found.err.startswith("robattr: "), words
        assert part in found.err, words
        assert found.err.count("\n") == 1, words
    assert {path.name for path in Path().iterdir()} == {"trained.yaml", "attacked.yaml", "folder"}


ENDLESS = TRAINED | {
    "training": TRAINED["training"] | {"schedule": TRAINED["training"]["schedule"] | {"epochs": 100_000}},
    "objectives": {"cross-entropy": None},
    "seeds": [0],
}


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGKILL], ids=["Ctrl-C", "killed"])
def test_processes_end_with_the_one_that_started_them(grids: list[Path], ending: signal.Signals) -> None:
    grids[0].write_text(yaml.safe_dump(ENDLESS, sort_keys=False))
    # Where tests run in the background, what they start would not hear Ctrl-C.
    program = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from robattr.studies import gpu; sys.exit(gpu.main())"
    )
    words = ["run", "--minutes", "5", "--workers", "2", "--accelerator", "cpu", "trained.yaml"]
    root = Path(gpu.__file__).parents[2]
    with subprocess.Popen(
        [sys.executable, "-c", program, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | {"PYTHONPATH": str(root)},
    ) as process:
        assert process.stdout is not None
        assert any("epoch 2" in line for line in process.stdout)
        # Ctrl-C is every process's of a terminal; what kills finds one.
        (os.killpg if ending is signal.SIGINT else os.kill)(process.pid, ending)
        # The pipes are closed once nobody holds them, the processes that measure neither.
        _, said = process.communicate(timeout=30)
    if ending is signal.SIGINT:
        assert process.returncode == 130
        assert said.splitlines()[-1] == "robattr: interrupted; records and trainings that are finished are kept"
        assert "Traceback" not in said


def test_a_lower_precision_turns_gradients_a_little(grids: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    found = gpu.precision(load_grid(grids[0]), device="cpu", images=32)
    assert set(found) == {"l2+cosine-0", "cross-entropy-0", "l2+cosine-3", "cross-entropy-3"}
    for cosines in found.values():
        # A CPU has no tf32; bfloat16 keeps eight bits of each factor.
        assert cosines["tf32"] == pytest.approx(1, abs=1e-6)
        assert 0.99 < cosines["bf16"] < 1 - 1e-9
    assert gpu.main(["precision", "--accelerator", "cpu", "trained.yaml"]) == 0
    written = json.loads(capsys.readouterr().out)
    assert written["device"] == "cpu"
    assert written["cosines"].keys() == found.keys()
