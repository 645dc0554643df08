"""Alarms: what goes wrong with games like these, noticed from the log, in plain words and with the remedy.

They know no method: they read the losses under their logged names, where a discriminator's own begins with D, and the
figures of `metrics.validation.quick_validation`, which is made of the verbs of inference. An alarm sounds once in a
run; it is in log.jsonl and on the page. Training goes on: a figure can be wrong, and some games recover.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

LEVEL = 1 / 255  # one grey level: what nobody can see
IN_A_ROW = 2  # evaluations that must agree
RECORDS = 5  # log lines that must agree
SETTLED = 0.4  # of a run: before, figures may be those of networks that have hardly moved, as in stages of TUNIT
START = 3  # log lines that say what a loss is at the start
WON = 0.02  # of its start: a discriminator's loss that is no longer a game
COLLAPSED = 0.9  # share of the images in one domain
EXPLODED = 50  # times its median
ALIKE = 0.05  # deviation of encoded styles of which the drawn ones have about 1
COUNTS = ("domains_empty", "share_largest", "spread")  # logged beside the losses, but none

Records = Sequence[Mapping[str, Any]]


def style_ignored(log: Records) -> str | None:
    low = last_figures(log, "pixel diversity")
    if not low or max(low) >= LEVEL:
        return None
    return (
        f"The style is ignored: outputs of one input in different styles differ by {low[-1] * 255:.2f} of 255 grey "
        "levels. Raise the weight of the loss that recovers or separates styles (lambda_s, lambda_sty, lambda_ds), or "
        "lower that of reconstruction."
    )


def content_ignored(log: Records) -> str | None:
    low = last_figures(log, "content diversity")
    if not low or max(low) >= LEVEL:
        return None
    return (
        f"The content is ignored: outputs of different inputs in one style differ by {low[-1] * 255:.2f} of 255 grey "
        "levels. Raise the weight of the cycle or content loss (lambda_c, lambda_cyc), or lower optim.default.lr."
    )


def clusters_collapsed(log: Records) -> str | None:
    used = last_figures(log, "clusters used")
    if not used or max(used) >= 1.5:
        return None
    return (
        f"The clusters have collapsed: {used[-1]:.2f} of them are in use, so all images are one domain. Begin anew "
        "with fewer method.clusters, larger batches, or another train.seed."
    )


def domains_empty(log: Records) -> str | None:
    found = losses(log)
    empty, largest = found.get("domains_empty", []), found.get("share_largest", [])
    if len(empty) < RECORDS or min(empty[-RECORDS:]) < 1:
        return None
    if min(largest[-RECORDS:]) > COLLAPSED:
        return (
            f"{largest[-1]:.0%} of the images fall into one domain: the clustering has collapsed. Begin anew with a "
            "larger data.batch, a lower optim.C.lr or another train.seed, and see that the images do differ."
        )
    return (
        f"{empty[-1]:.0f} of the domains hold hardly any image, halfway through the first stage. If they stay empty "
        "the images have fewer kinds (method.clusters; compare numbers by unpaired domains --choose), or the first "
        "stage is too short (method.first_stage, train.steps)."
    )


def styles_collapsed(log: Records) -> str | None:
    spread = losses(log).get("spread", [])
    if len(spread) < RECORDS or max(spread[-RECORDS:]) >= ALIKE:
        return None
    return (
        f"The styles have collapsed: those of different images differ by {spread[-1]:.3f}, where random ones differ by "
        "about 1. Lower the losses that E alone learns from (lambda_smooth, lambda_uni), or optim.E.lr."
    )


def discriminator_wins(log: Records) -> str | None:
    for name, values in losses(log).items():
        if name.startswith("D") and len(values) >= START + RECORDS:
            start = median(values[:START])
            if 0 <= max(values[-RECORDS:]) < WON * start:
                return (
                    f"The discriminator has won: its loss {name} fell from {start:.3g} to {values[-1]:.3g}, so the "
                    "generator learns nothing more. Lower the learning rate of the discriminators (such as optim.D.lr: "
                    "config.yaml names the networks), or give it more or more varied images."
                )
    return None


def loss_explodes(log: Records) -> str | None:
    for name, values in losses(log).items():
        in_play = [abs(v) for v in values[:-2] if v]  # 0: a weight that has not begun to rise
        if len(in_play) >= 2 * RECORDS - 2 and name not in COUNTS:
            usual = median(in_play)
            if min(abs(v) for v in values[-2:]) > EXPLODED * max(usual, 1e-3):
                return (
                    f"The loss {name} explodes: {values[-1]:.3g}, where {usual:.3g} was usual. Lower optim.default.lr, "
                    "or set optim.default.clip=1."
                )
    return None


ALARMS: dict[str, Callable[[Records], str | None]] = {
    "style ignored": style_ignored,
    "content ignored": content_ignored,
    "clusters collapsed": clusters_collapsed,
    "domains empty": domains_empty,
    "styles collapsed": styles_collapsed,
    "discriminator wins": discriminator_wins,
    "loss explodes": loss_explodes,
}


def sounding(log: Records, steps: int) -> dict[str, str]:
    """The alarms that the log of a run of `steps` gives cause for and that it does not hold yet: name and text."""
    rung = {record["alarm"] for record in log if "alarm" in record}
    log = [r for r in log if "figures" not in r or r["step"] >= SETTLED * steps]
    texts = {name: look(log) for name, look in ALARMS.items() if name not in rung}
    return {name: text for name, text in texts.items() if text}


def last_figures(log: Records, name: str) -> list[float]:
    """The latest values of a figure; empty where there are not enough, or where it cannot be measured."""
    figures = [r["figures"] for r in log if "figures" in r][-IN_A_ROW:]
    values = [f[name] for f in figures if f.get(name) is not None]
    return values if len(values) == IN_A_ROW else []


def losses(log: Records) -> dict[str, list[float]]:
    """The course of each loss."""
    found: dict[str, list[float]] = {}
    for record in log:
        for name, value in record.get("losses", {}).items():
            found.setdefault(name, []).append(value)
    return found
