"""Everything that is to be measured on a GPU, in one command of some minutes:

    python benchmarks/gpu.py
    python benchmarks/gpu.py --only doctor tests step-float32

It runs `doctor`, the parity tests marked `gpu`, the scan by backend (`scan_gpu.py`), the mixers beside
mamba-ssm's kernels called directly (`step_gpu.py`), training steps of whole models beside timm's
(`backbones_gpu.py`) and of detectors and segmenters (`dense_gpu.py`), and time and memory of every mixer
against the length, at equal numbers of tokens (`run_ablation.py bench`), in float32 and bfloat16. What they
print goes to experiments/results/gpu/ with the GPU's name, under a heading with hardware and versions.
`--tiny --device cpu` tries it out without a GPU.
"""

import argparse
import importlib.metadata
import os
import platform
import re
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from experiments.code_version import ROOT, code_version
from mixers import MIXERS

LENGTHS = [256, 1024, 4096, 16384, 65536]
TOKENS = 65536  # at every length: a single short sequence measures how fast kernels are launched
TINY_LENGTHS = [16, 32]
TINY_TOKENS = 64
TESTS = ("tests/mixers/test_scan_triton.py", "tests/mixers/test_cuda_kernels.py")
# these tests need none of the plugins that the others do; what a plugin that is there warns of is no failure
PYTEST = ("-m", "pytest", "-o", "addopts=--import-mode=importlib -q", "-p", "no:benchmark", "-W", "default")
PACKAGES = ("torch", "triton", "mamba-ssm", "causal-conv1d")


def commands(tiny: bool, device: str, out: Path) -> dict[str, list[str]]:
    """What to run, by the name of the file that takes what it prints."""
    lengths = [str(length) for length in (TINY_LENGTHS if tiny else LENGTHS)]
    tokens = str(TINY_TOKENS if tiny else TOKENS)
    small = ["--device", device, *(["--tiny"] if tiny else [])]
    runs = {
        "doctor": ["run_ablation.py", "doctor"],
        # in several processes, since most of the time goes into compiling kernels
        "tests": [*PYTEST, "-m", "gpu", "-n", "8", "-rfEs", "--tb=short", *TESTS],
        "step-float32": ["benchmarks/step_gpu.py", *small],
        "step-bfloat16": ["benchmarks/step_gpu.py", "--bfloat16", *small],
    }
    # the matrix of `random`, L x L, is drawn on the CPU: over a minute for 65,536 tokens
    measured = [name for name in MIXERS if 1 in MIXERS.load(name).grid_ranks and name != "random"]
    for dtype in ("float32", "bfloat16"):
        width, seconds = ("16", "0.01") if tiny else ("512", "0.2")
        runs[f"mixers-{dtype}"] = [
            *("run_ablation.py", "bench", "--dim", width, "--seconds", seconds, "--dtype", dtype),
            *("--device", device, "--runs", str(out / dtype), "--tokens", tokens, "--length", *lengths),
            *("--mixer", *measured),
        ]
    tried = ["--tiny", "--no-compile"] if tiny else []
    runs["backbones"] = ["benchmarks/backbones_gpu.py", "--device", device, *tried]
    runs["scan-float32"] = ["benchmarks/scan_gpu.py"]
    runs["scan-bfloat16"] = ["benchmarks/scan_gpu.py", "--bfloat16"]
    dense = ["benchmarks/dense_gpu.py", *(["--small"] if tiny else [])]
    return runs | {"dense-float32": dense, "dense-bfloat16": [*dense, "--bfloat16"]}


def heading(device: str) -> str:
    versions = [f"python {platform.python_version()}"]
    for package in PACKAGES:
        try:
            versions.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            versions.append(f"{package} missing")
    gpu = torch.cuda.get_device_name() if device == "cuda" else "no GPU"
    built = f"CUDA {torch.version.cuda}; {', '.join(versions)}; code {code_version()}"
    return f"{gpu}, {built}; {datetime.now(UTC):%F}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="small sizes, to try the script out")
    parser.add_argument(
        "--only", nargs="+", metavar="NAME", help="some of what it runs, by their files' names"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "experiments" / "results" / "gpu")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit("There is no GPU here; --tiny --device cpu --out FOLDER tries the script out.")
    name = torch.cuda.get_device_name() if options.device == "cuda" else "cpu"
    out = options.out / re.sub(r"\W+", "-", name).strip("-").lower()
    out.mkdir(parents=True, exist_ok=True)
    runs, failed = commands(options.tiny, options.device, out), []
    unknown = sorted(set(options.only or ()) - set(runs))
    if unknown:
        sys.exit(f"There is no {', '.join(unknown)} (known: {', '.join(runs)}).")
    for title in options.only or runs:
        arguments = runs[title]
        print(f"{title}: {' '.join(arguments)}", flush=True)
        begin = time.perf_counter()
        path = out / f"{title}.txt"
        with path.open("w") as file:  # written as it comes: a machine may be gone before the end
            print(f"{heading(options.device)}\n", file=file, flush=True)
            done = subprocess.run(
                [sys.executable, *arguments],
                cwd=ROOT,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
                stdout=file,
                stderr=subprocess.STDOUT,
                check=False,
            )
        last = "\n".join(path.read_text().splitlines()[-3:])
        print(f"{last}\n{time.perf_counter() - begin:.0f} s", flush=True)
        if done.returncode:
            failed.append(title)
    print(f"written  {out}")
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
