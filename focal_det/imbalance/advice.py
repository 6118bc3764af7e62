"""Advice on the loss and the sampling for a training set, from recorded comparisons alone.

A comparison has trained several answers on the same data, each with a few seeds. Those whose data
are most like the training set are used, and a change is advised where they agree. evidence.json is
made from the records of projects/Imbalance, TwoStage and Losses by dev/render_evidence.py.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.config import CfgNode

from focal_det.modeling.build import get_value
from focal_det.modeling.parts import ARCHITECTURE, get_keys_read, get_part

from .describe_stages import to_number
from .stages import Balance

# The most frequent class has this many times as many objects as a class that is called rare.
RARE_RATIO = 20
_EVIDENCE = Path(__file__).with_name("evidence.json")
# How unlike the recorded data a training set may be: the ratios of their sizes, multiplied.
_MAX_RATIO = 5.0
# Two answers are level within so many standard errors of their difference, and within so much AP:
# less is not worth a change.
_NUM_ERRORS = 2.0
_MIN_GAIN = 1.0
# Comparisons whose distances differ by no more are equally like the training set.
_SAME_DISTANCE = 0.1
_RATE = "SOLVER.BASE_LR"
# Sizes of data, and how they are told.
NEGATIVES = "negatives_per_positive"
CLASSES = "classes"
FREQUENCIES = "most_per_least_frequent"
_UNITS = {
    NEGATIVES: "negative anchors per positive",
    CLASSES: "classes",
    FREQUENCIES: "objects of the most frequent class for each of the least frequent",
}


@dataclass(frozen=True)
class Answer:
    """One answer to an imbalance, as it was recorded.

    Attributes:
        name: for people.
        values: config keys and values that select it.
        rate: its learning rate per image.
        mean: AP in percent over seeds.
        error: its standard error.
    """

    name: str
    values: Mapping[str, Any]
    rate: float
    mean: float
    error: float

    def is_level_with(self, other: "Answer") -> bool:
        """Whether the records do not tell the two apart, or the difference is small."""
        error = math.hypot(self.error, other.error)
        return abs(self.mean - other.mean) <= max(_NUM_ERRORS * error, _MIN_GAIN)

    def is_in(self, cfg: CfgNode) -> bool:
        """Whether a config has selected it."""
        return all(get_value(cfg, key) == value for key, value in self.values.items())

    def __str__(self) -> str:
        return f"{self.mean:.1f} ± {self.error:.1f}"


@dataclass(frozen=True)
class Comparison:
    """Answers that were trained on the same data.

    Attributes:
        sizes: of the data, each > 0, by names of `_UNITS`.
        record: file with its runs, in the repository.
        answers: in the order of preference where they are level.
    """

    sizes: Mapping[str, float]
    record: str
    answers: Sequence[Answer]

    def get_distance(self, sizes: Mapping[str, float]) -> float:
        """How unlike other data are: logarithms of the ratios of sizes, added."""
        return sum(abs(math.log(size / self.sizes[name])) for name, size in sizes.items())

    def __str__(self) -> str:
        return f"digits, {_describe_sizes(self.sizes)}; {self.record}"

    def choose(self) -> list[Answer]:
        """The best answer and those level with it, in the order of preference."""
        best = max(self.answers, key=lambda x: x.mean)
        return [x for x in self.answers if x.is_level_with(best)]


@dataclass(frozen=True)
class Advice:
    """What the records say for a training set.

    Attributes:
        topic: "loss" or "sampling".
        lines: for people; they name the records.
        values: config keys to change: none unless the config was compared, and was worse.
        records: files in the repository; empty if there are none.
    """

    topic: str
    lines: Sequence[str]
    values: Mapping[str, Any]
    records: Sequence[str] = ()


def load_evidence(topic: str) -> list[Comparison]:
    """The recorded comparisons.

    Args:
        topic: "loss" for the imbalance of objects and background, "sampling" for that of classes.
    """
    content = json.loads(_EVIDENCE.read_text(encoding="utf-8"))
    return [
        Comparison(x["sizes"], x["record"], [Answer(**answer) for answer in x["answers"]])
        for x in content[topic]
    ]


def make_advice(cfg: CfgNode, balance: Balance, counts: np.ndarray) -> list[Advice]:
    """Advice for a RetinaNet of focal_det; the comparisons are not of other detectors.

    Args:
        balance: of its anchors.
        counts: (K,) objects of each class, of at least one class not 0.
    """
    reads_loss = "CLS_LOSS" in get_keys_read(get_part(cfg, ARCHITECTURE))
    if not reads_loss or balance.positives == 0:
        return []
    sizes = {NEGATIVES: balance.negatives_per_positive, CLASSES: len(counts)}
    advice = [advise("loss", sizes, cfg)]
    ratio = float(counts.max() / counts[counts > 0].min())
    # Frequencies that are nearly equal ask for nothing.
    if ratio >= RARE_RATIO:
        advice.append(advise("sampling", {FREQUENCIES: ratio, CLASSES: len(counts)}, cfg))
    return advice


def advise(topic: str, sizes: Mapping[str, float], cfg: CfgNode) -> Advice:
    """Compare a config with what was recorded on data of about the same sizes.

    Args:
        topic: see `load_evidence`.
        sizes: of the training set, see `Comparison`.
    """
    comparisons = load_evidence(topic)
    distances = [x.get_distance(sizes) for x in comparisons]
    if min(distances) > math.log(_MAX_RATIO):
        nearest_one = comparisons[distances.index(min(distances))]
        reason = f"{_describe_sizes(sizes)} are unlike all records; the most similar is"
        return Advice(topic, [f"no advice: {reason} {nearest_one}"], {})
    nearest = [x for x, y in zip(comparisons, distances) if y <= min(distances) + _SAME_DISTANCE]
    verdicts = [_judge(x, cfg) for x in nearest]
    lines = [line for line, _ in verdicts]
    values = verdicts[0][1]
    if any(other != values for _, other in verdicts):
        values = {}
        lines.append("these records differ, so nothing is advised")
    return Advice(topic, lines, values, [x.record for x in nearest])


def _judge(comparison: Comparison, cfg: CfgNode) -> tuple[str, Mapping[str, Any]]:
    """What one comparison says of a config, and the keys to change: none unless it was worse."""
    level = comparison.choose()
    best = level[0]
    mine = next((x for x in comparison.answers if x.is_in(cfg)), None)
    if mine is None:
        return f"yours was not compared; best was {best.name}: AP {best} ({comparison})", {}
    if mine in level:
        return f"keep {mine.name}: AP {mine}, no other was clearly better ({comparison})", {}
    what = best.name
    values = dict(best.values)
    if best.rate != mine.rate:
        ratio = best.rate / mine.rate
        what += f", at {ratio:.3g} times the learning rate"
        values[_RATE] = float(f"{cfg.SOLVER.BASE_LR * ratio:.6g}")
    line = f"better: {what}: AP {best}, and {mine} with yours, {mine.name} ({comparison})"
    return line, values


def _describe_sizes(sizes: Mapping[str, float]) -> str:
    parts = [f"{to_number(size)} {_UNITS[name]}" for name, size in sizes.items()]
    return ", ".join("1 class" if x == "1 classes" else x for x in parts)
