"""What each reconstruction loss of MUNIT is for: the demo's run without one of them at a time, on the scenes.

    python benchmarks/ablation_munit.py            # stop and start it at will: finished runs are not repeated

Writes runs/ablation/<name>, and a table of both figures (src/unpaired/metrics/scenes.py) in both directions. More words
are settings of all runs.
"""

import argparse
from pathlib import Path

from running import apart, measured, trained

CONFIG = Path(__file__).parent.parent / "configs" / "munit_demo.yaml"
RUNS = {
    "all losses": [],
    "without image reconstruction": ["method.lambda_x=0"],
    "without content reconstruction": ["method.lambda_c=0"],
    "without style reconstruction": ["method.lambda_s=0"],
}


def main(argv=None):
    p = argparse.ArgumentParser(description="What each reconstruction loss of MUNIT is for.")
    p.add_argument("--minutes", type=float, default=30, help="of a run, at most")
    args = apart(p, argv)
    rows = []
    for name, settings in RUNS.items():
        run = Path("runs/ablation") / name.replace(" ", "-")
        step = trained(run, CONFIG, *settings, *args.settings, minutes=args.minutes)
        figures = measured(run, step)["scenes"]
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
