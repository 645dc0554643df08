"""What each number is: its name, which way is better, its range, its source. Pages and reports take it from here."""

from __future__ import annotations

import re
from typing import NamedTuple


class Metric(NamedTuple):
    """One metric. `better` is "higher", "lower", or "-" where neither end is good."""

    name: str
    better: str
    range: str
    source: str
    says: str

    @property
    def arrow(self) -> str:
        return {"higher": "↑", "lower": "↓", "-": ""}[self.better]


TABLE = """
# How much the outputs look like the target domain
FID                 lower   [0, inf)         Heusel et al., NIPS 2017
    Frechet distance of Inception-v3 features
Frechet             lower   [0, inf)         Heusel et al., NIPS 2017
    the same distance on the features named with it
KID                 lower   about [0, inf)   Binkowski et al., ICLR 2018
    squared MMD of features, unbiased: first choice for small sets
SWD                 lower   [0, inf)         Karras et al., ICLR 2018
    sliced Wasserstein distance of image patches, times 1,000; needs no network
precision           higher  [0, 1]           Kynkaanniemi et al., NeurIPS 2019
    share of outputs among the real images
recall              higher  [0, 1]           Kynkaanniemi et al., NeurIPS 2019
    share of real images among the outputs
density             higher  [0, inf)         Naeem et al., ICML 2020
    how densely real images surround the outputs; about 1 for real ones
coverage            higher  [0, 1]           Naeem et al., ICML 2020
    share of real images with an output near by
target share        higher  [0, 1]           -
    share of outputs that the classifier takes for the target domain
# How varied they are
LPIPS diversity     higher  [0, inf)         Zhang et al., CVPR 2018; Zhu et al., NIPS 2017
    perceptual distance of outputs of one input; noise raises it too
pixel diversity     -       [0, 1]           -
    mean absolute difference of outputs of one input; noise raises it too
IS                  higher  [0, ln K]        Salimans et al., NIPS 2016
    classes are certain for each output and varied over all, in nats
exp IS              higher  [1, K]           Salimans et al., NIPS 2016
    IS, exponentiated
CIS                 higher  [0, ln K]        Huang et al., ECCV 2018
    classes are certain for each output and varied over those of one input, in nats
exp CIS             higher  [1, K]           Huang et al., ECCV 2018
    CIS, exponentiated
styles covered      higher  [0.14, about 1]  -
    scenes: how evenly true style factors are reached for each input
# What is kept of the input
content kept        higher  [0, about 1]     -
    scenes: overlap of the object with that of the input
label kept          higher  [0, 1]           Hoffman et al., ICML 2018
    share of outputs that a classifier of real target images gives the input's label
cycle error         lower   [0, 1]           Zhu et al., ICCV 2017
    mean absolute difference of an input and its way there and back
paired error        lower   [0, 1]           Isola et al., CVPR 2017
    mean absolute difference to the true partner, the best of an input's outputs
paired LPIPS        lower   [0, inf)         Zhang et al., CVPR 2018
    perceptual distance to the true partner, the best of an input's outputs
change              -       [0, 1]           -
    mean absolute difference of input and output; 0: nothing was done
content diversity   -       [0, 1]           -
    mean absolute difference of outputs of several inputs in one style; 0: the input is ignored
# The space of styles
style gap           lower   about [0, 1]     Szekely and Rizzo, J. Stat. Plan. Inference 2013
    energy coefficient between sampled and encoded styles; 0: alike
PS                  higher  [0, 1]           Liu et al., CVPR 2021
    path from style to style: straight and even
PS between domains  higher  [0, 1]           Liu et al., CVPR 2021
    the same, from a style of the source to one of the target; one network for all domains
MCC                 higher  [0, 1]           Hyvarinen and Morioka, NIPS 2016
    scenes: correlation of style components with true factors, Pearson
MCC ranks           higher  [0, 1]           Hyvarinen and Morioka, NIPS 2016
    the same, Spearman
# Found domains
cluster accuracy    higher  [0, 1]           Yang et al., TIP 2010
    agreement with true labels by the best one-to-one assignment
NMI                 higher  [0, 1]           Strehl and Ghosh, JMLR 2002
    normalised mutual information with true labels
ARI                 higher  [-0.5, 1]        Hubert and Arabie, J. Classification 1985
    pairs treated alike, adjusted for chance
clusters used       -       [1, K]           -
    exponential of the entropy of the clusters' sizes; 1: collapsed
"""


def parse(table: str) -> dict[str, Metric]:
    """Two lines each: name, better, range and source, two spaces apart; what it says. # begins a group."""
    lines = [line for line in table.strip().splitlines() if not line.startswith("#")]
    rows = zip(lines[::2], lines[1::2], strict=True)
    metrics = {}
    for head, says in rows:
        name, better, span, source = re.split(r"\s{2,}", head)
        metrics[name] = Metric(name, better, span, source, says.strip())
    return metrics


METRICS = parse(TABLE)


def metric(name: str) -> Metric:
    """The metric of a column: "KID (squeezenet)" is KID on the features named with it. Raises KeyError."""
    return METRICS[name.partition(" (")[0]]
