"""What each reconstruction loss of MUNIT is for: the demo's run without one of them at a time, on the scenes.

    python benchmarks/ablation_munit.py            # stop and start it at will: finished runs are not repeated

Writes runs/ablation/<name>, and a table of both figures (src/unpaired/metrics/scenes.py) in both directions.
"""

import json
import subprocess
import sys
from pathlib import Path

CONFIG = Path(__file__).parent.parent / "configs" / "munit_demo.yaml"
RUNS = {
    "all losses": [],
    "without image reconstruction": ["method.lambda_x=0"],
    "without content reconstruction": ["method.lambda_c=0"],
    "without style reconstruction": ["method.lambda_s=0"],
}


def unpaired(*words):
    subprocess.run([sys.executable, "-m", "unpaired", *map(str, words)], check=True)


def main():
    rows = []
    for name, settings in RUNS.items():
        run = Path("runs/ablation") / name.replace(" ", "-")
        if not (run / "metrics.json").exists():
            if (run / "config.yaml").exists():
                unpaired("train", "--resume", run)
            else:
                unpaired("train", CONFIG, *settings, *sys.argv[1:], "--out", run)
            unpaired("evaluate", run)
        figures = json.loads((run / "metrics.json").read_text())["scenes"]
        values = [
            f"{row['model'][k]:.2f}"
            for k in ("content kept", "styles covered")
            for row in figures.values()
        ]
        rows.append(f"| {name} | {' | '.join(values)} |")
    ways = " | ".join(f"{k}, {way}" for k in ("content kept", "styles covered") for way in figures)
    print(f"| run | {ways} |\n| --- | {'--- | ' * len(values)}")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
