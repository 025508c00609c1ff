"""What `doctor` says of every kernel: what its own probe found, and what runs where nothing is asked for."""

from __future__ import annotations

import pytest
import torch

import run_ablation
from mixers import backends
from mixers.backends import Probe


@pytest.mark.parametrize("gpu", [False, True])
def test_every_kernel_has_what_its_probe_found_and_how_to_mend_it(
    gpu: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def probe(name: str, *, operation: str) -> Probe:
        ran = name == "reference"
        version = "1.2.3" if ran else None
        return Probe(name, ran, version, ran, f"{operation} by {name}", "" if ran else f"install {name}")

    def resolve(requested: str, device: str, *, operation: str) -> tuple[str, str]:
        return f"{requested} for {operation}", f"as it is on {device}"

    monkeypatch.setattr(backends, "probe", probe)
    monkeypatch.setattr(backends, "resolve", resolve)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100")
    assert run_ablation.main(["doctor"]) == 0
    head, *parts = capsys.readouterr().out.split("\n\n")
    assert f"torch {torch.__version__}, GPU: {'NVIDIA H100' if gpu else 'none'}\n" in head
    device = "cuda" if gpu else "cpu"
    assert len(parts) == len(backends.OPERATIONS)
    for part, (operation, about) in zip(parts, backends.OPERATIONS.items(), strict=True):
        _title, _columns, *rows, chosen = part.splitlines()
        expected = []
        for name in about.backends:
            if name == "reference":
                expected.append(f"{name} 1.2.3 yes {operation} by {name}")
            else:
                expected += [f"{name} missing no {operation} by {name}", f"fix: install {name}"]
        assert [" ".join(row.split()) for row in rows] == expected
        assert chosen.strip() == f"auto takes 'auto for {operation}' on {device} (as it is on {device})"


def test_it_takes_no_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_ablation.main(["doctor", "scan"]) == 2
    assert "doctor takes no arguments, got scan" in capsys.readouterr().err
