"""How long the report of a large study takes: every table, figure and page, on two cores.

    python benchmarks/report.py                  10,000 trials: 500 arms of 20 seeds
    python benchmarks/report.py --arms 50

The records are those of a trial that comes with the project, under other ids and with answers of their own: a
random part of the targets right, and the accuracy that this makes.
"""

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from experiments.store import Store

RECORDS = Path(__file__).resolve().parent.parent / "experiments" / "results" / "cpu"
STUDY = "mqar-small"
Answers = dict[str, np.ndarray]
ANSWERS = 200  # different ones; each is that of many trials


def answers(predictions: Path, right: float, stream: np.random.Generator) -> tuple[Answers, float]:
    """What a trial answers that gets this part of the targets right, and its accuracy in %."""
    with np.load(predictions) as stored:
        arrays = {name: stored[name] for name in stored}
    target = arrays["target"]
    scored = target >= 0
    correct = scored & (stream.random(target.shape) < right)
    arrays["prediction"] = np.where(correct, target, np.where(scored, target + 1, 0))
    return arrays, float(100 * correct.sum() / scored.sum())


def multiply(runs: Path, arms: int, seeds: int) -> Path:
    """Write a study of so many trials; returns its folder."""
    plan = json.loads((RECORDS / "studies" / STUDY / "plan.json").read_text(encoding="utf-8"))
    template = plan["arms"][0]
    source = RECORDS / "trials" / template["trials"][0]["trial_id"]
    result = json.loads((source / "result.json").read_text(encoding="utf-8"))
    metric = plan["metric"]["name"]
    stream = np.random.default_rng(0)
    shares = stream.normal(0.5, 0.01, ANSWERS)
    variants = []
    for number, share in enumerate(shares):
        arrays, accuracy = answers(source / "predictions.npz", share, stream)
        written = Store(runs / "variants").folder(str(number))
        written.answer(arrays)
        variants.append((written.predictions, accuracy))
    choice = random.Random(0)
    planned = []
    for arm in range(arms):
        trials = [{"seed": seed, "trial_id": f"{arm:08x}{seed:08x}"} for seed in range(seeds)]
        planned.append(template | {"name": f"arm{arm}", "arm": f"arm{arm}", "trials": trials})
        for trial in trials:
            folder = runs / "trials" / trial["trial_id"]
            folder.mkdir(parents=True)
            for name in ("curve.csv", "timing.json"):
                shutil.copy(source / name, folder / name)
            predictions, accuracy = choice.choice(variants)
            shutil.copy(predictions, folder / "predictions.npz")
            metrics = {split: values | {metric: accuracy} for split, values in result["metrics"].items()}
            changed = result | {"trial_id": trial["trial_id"], "metrics": metrics}
            (folder / "result.json").write_text(json.dumps(changed), encoding="utf-8")
    pairs = [{"arm": arm["name"], "baseline": "arm0"} for arm in planned[1:]]
    study = runs / "studies" / "large"
    study.mkdir(parents=True)
    families = [list(range(len(pairs)))]
    many = plan | {"arms": planned, "comparisons": pairs, "families": families, "search": None}
    (study / "plan.json").write_text(json.dumps(many), encoding="utf-8")
    return study


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--arms", type=int, default=500)
    parser.add_argument("--seeds", type=int, default=20)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        study = multiply(Path(folder), arguments.arms, arguments.seeds)
        start = time.perf_counter()

        from analysis.report import write_study

        report = write_study(study, study.parents[1] / "trials")
        seconds = time.perf_counter() - start
    if not report.paths:
        raise SystemExit(" ".join(report.verdict_lines))
    trials = arguments.arms * arguments.seeds
    print(f"{trials:,} trials: {len(report.paths)} files in {seconds:.1f} s")


if __name__ == "__main__":
    main()
