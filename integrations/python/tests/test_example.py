"""The example `finetune_apertus.py`: repeatable, resumable, with and without xact."""

import importlib.util

import pytest
import torch
from conftest import HERE

pytest.importorskip("transformers")
pytestmark = pytest.mark.usefixtures("activation_tables")


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("finetune_apertus", HERE.parent / "examples/finetune_apertus.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def weights(trainer):
    return [each.detach().clone() for each in trainer.model.parameters()]


def test_it_repeats_and_resumes(example, tmp_path, capsys):
    def run(folder, steps, *more):
        options = ["--steps", str(steps), "--save-steps", "4", "--width", "16", "--layers", "1"]
        return example.main([*options, "--output", str(tmp_path / folder), *more])

    whole = run("whole", 8)
    assert "with xact: " in capsys.readouterr().out
    assert whole.state.global_step == 8
    run("stopped", 4)
    resumed = run("stopped", 8, "--resume")
    assert resumed.state.global_step == 8
    for got, want in zip(weights(resumed), weights(whole), strict=True):
        assert torch.equal(got, want)
    other = run("other", 4, "--seed", "1")
    assert not torch.equal(weights(other)[0], weights(whole)[0])
    with pytest.raises(SystemExit):
        run("nowhere", 8, "--resume")
    assert "has no checkpoint to resume from" in capsys.readouterr().err


def test_it_runs_without_xact(example, tmp_path, capsys):
    trainer = example.main(["--plain", "--steps", "4", "--width", "16", "--layers", "1", "--output", str(tmp_path)])
    assert "transformers alone: " in capsys.readouterr().out
    assert not any(type(module).__module__.startswith("xact") for module in trainer.model.modules())
