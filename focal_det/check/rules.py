"""Every fault that a check can find: its id, severity, title and advice, and no other prose.

The rules of annotation files, images and annotations are in `data_rules.py`.

Ids are stable, as people ignore findings by them: a rule that is removed leaves its number unused.
They are grouped by what is checked:

    CHK0xx  config: data sets it names, solver, machine, model and weights
    CHK1xx  annotation files: whether they can be read, their categories, whether they hold objects
    CHK2xx  images: their entries in the annotations, their files
    CHK3xx  annotations: ids and fields, boxes, faults that all of them share
    CHK4xx  data sets against each other, against the model and under evaluation
    CHK5xx  training set: classes and anchors
    CHK9xx  free for checks of your own
"""

from dataclasses import dataclass

SEVERITIES = ("error", "warning", "note")
# The ranges of ids, as docs/check.md heads them.
TOPICS = {
    "CHK0": "Config, machine, model and weights",
    "CHK1": "Annotation files",
    "CHK2": "Images",
    "CHK3": "Annotations",
    "CHK4": "Data sets together, and their evaluation",
    "CHK5": "Training set",
}
# Said once, above a table and after findings: as advice it would fill most rows of CHK3xx.
FIX_OPTIONS = "--dataset NAME --fix OUT.json"
FIX_NOTE = f"For CHK300 to CHK316, {FIX_OPTIONS} writes a corrected copy of a COCO JSON."


@dataclass(frozen=True)
class Rule:
    """One fault that a check can find.

    Attributes:
        id: such as "CHK202".
        severity: "error": training or evaluation would stop or go wrong; "warning": something is
            lost; "note": good to know.
        title: a noun phrase in the singular, such as "invalid image id".
        advice: what to do; `{name}` stands for a value that the check gives.
        otherwise: another severity that the check may give, and when.
    """

    id: str
    severity: str
    title: str
    advice: str
    otherwise: str = ""

    @property
    def is_fixable(self) -> bool:
        """Whether `--fix` corrects the fault in a COCO JSON."""
        return "CHK300" <= self.id <= "CHK316"


RULES: dict[str, Rule] = {}


def add_rule(rule_id: str, severity: str, title: str, advice: str, *, otherwise: str = "") -> Rule:
    """Make a rule known under its id, for a check of focal_det or of your own.

    Args:
        rule_id, severity, title, advice, otherwise: as `Rule` describes them.

    Raises:
        ValueError: the id is taken, or the severity is unknown.
    """
    if rule_id in RULES:
        raise ValueError(
            f"the id {rule_id} is taken by the rule {RULES[rule_id].title!r}; choose another one"
        )
    if severity not in SEVERITIES:
        raise ValueError(f"severity must be one of {', '.join(SEVERITIES)}, got {severity!r}")
    RULES[rule_id] = Rule(rule_id, severity, title, advice, otherwise)
    return RULES[rule_id]


# Config: the data sets and the architecture it names.
INTERRUPTED_CHECK = add_rule(
    "CHK000", "warning", "interrupted check", "The rest was not checked: run it again."
)
# Names may be missing because of this one, so nothing else is checked after it.
INVALID_DATASET_BLOCK = add_rule(
    "CHK001", "error", "invalid data set block", "Correct MODEL.FOCAL_DET.DATASETS."
)
UNREGISTERED_DATASET = add_rule(
    "CHK002",
    "error",
    "unregistered data set",
    "Register it in FOCAL_DET_DATASETS ({file}), in MODEL.FOCAL_DET.DATASETS or in your own code.",
)
# build_evaluator knows these types; Detectron2 fails after training for others.
NO_EVALUATOR = add_rule(
    "CHK003",
    "error",
    "test set without an evaluator",
    "Set its evaluator_type to one of {known}.",
)
NO_TRAINING_SET = add_rule("CHK004", "error", "no training set", "List one in DATASETS.TRAIN.")
UNREGISTERED_ARCHITECTURE = add_rule(
    "CHK005", "error", "unregistered architecture", "Import the code that defines it."
)
# Tutorials set the number of classes of another head, which a RetinaNet does not read.
FOREIGN_KEY = add_rule(
    "CHK006",
    "warning",
    "key of a two-stage detector in the config of a RetinaNet",
    "A RetinaNet does not read it. Set keys of {node_key} instead, such as {num_classes_key}.",
)
# Each detector has a part of the node, and Detectron2's own parts have none of it.
UNREAD_KEY = add_rule(
    "CHK007",
    "warning",
    "key of MODEL.FOCAL_DET that the detector does not read",
    "It has no effect: remove it, or choose a model that reads it.",
)

# Config: numbers by themselves and against each other.
NON_FINITE_NUMBER = add_rule(
    "CHK010", "error", "non-finite number", "Set the key to a finite number."
)
NUMBER_NOT_POSITIVE = add_rule(
    "CHK011", "error", "number that must be positive", "Set the key to a number above 0."
)
# Schedules that are copied from a longer run never lower the rate.
LATE_STEP = add_rule(
    "CHK012",
    "warning",
    "learning rate step after the end of training",
    "Set SOLVER.STEPS below SOLVER.MAX_ITER.",
)
LONG_WARMUP = add_rule(
    "CHK013",
    "warning",
    "warm-up longer than training",
    "SOLVER.BASE_LR is never reached: lower SOLVER.WARMUP_ITERS.",
)
# The linear rule of arXiv 1706.02677, section 2.1.
UNUSUAL_LEARNING_RATE = add_rule(
    "CHK014",
    "warning",
    "unusual learning rate for the batch size",
    "The linear rule (16 images at {rate}) gives about {expected}; if you go above it, "
    "lengthen the warm-up.",
)
SHORT_WARMUP = add_rule(
    "CHK015",
    "warning",
    "short warm-up for a high learning rate",
    "Set SOLVER.WARMUP_ITERS to 500 or more.",
)
# torchvision's models take images from 0 to 1.
SMALL_PIXEL_MEAN = add_rule(
    "CHK016",
    "warning",
    "pixel mean for values from 0 to 1",
    "Detectron2's images range from 0 to 255, in the order of INPUT.FORMAT: multiply "
    "MODEL.PIXEL_MEAN and MODEL.PIXEL_STD by 255.",
)

# Machine.
# A config may be checked on a laptop and trained elsewhere.
NO_GPU = add_rule(
    "CHK020",
    "note",
    "no GPU on this machine",
    "Training here would stop: set MODEL.DEVICE cpu, or train on a machine with a GPU.",
    otherwise="error when training is about to start",
)
FOLDER_NOT_CREATED = add_rule(
    "CHK021", "error", "folder that cannot be created", "Choose another OUTPUT_DIR."
)

# Model and weights.
MODEL_NOT_BUILT = add_rule("CHK030", "error", "model that cannot be built", "Correct the config.")
MISSING_WEIGHTS = add_rule("CHK031", "error", "weights that do not exist", "Correct MODEL.WEIGHTS.")
UNLOADABLE_WEIGHTS = add_rule(
    "CHK032", "error", "weights that cannot be loaded", "Correct MODEL.WEIGHTS."
)
# Weights without any match are refused when they are loaded, as CHK032.
FEW_WEIGHTS = add_rule(
    "CHK033",
    "warning",
    "weights for a small part of the model",
    "The rest starts at random: make sure that MODEL.WEIGHTS is the right file.",
)
PARTIAL_WEIGHTS = add_rule(
    "CHK034", "note", "weights for a part of the model", "The rest starts at random."
)
# Nothing else reveals it: the loss falls as usual, only AP stays lower.
OTHER_PIXELS = add_rule(
    "CHK035",
    "warning",
    "images unlike those that the weights were trained with",
    "Set INPUT.FORMAT {order}, MODEL.PIXEL_MEAN {mean} and MODEL.PIXEL_STD {std}.",
)

# Data sets together, and their evaluation.
OTHER_CLASSES = add_rule(
    "CHK400",
    "error",
    "data set whose classes differ from the training set's",
    "Detections would count for other classes: use the same categories, in the same order of ids.",
)
# Too few classes crash in the loss, too many only in the evaluation.
OTHER_NUMBER_OF_CLASSES = add_rule(
    "CHK401",
    "error",
    "data set whose number of classes differs from the model's",
    "Set {key} to {num_classes}; background is not counted.",
)
FAILING_EVALUATION = add_rule(
    "CHK410",
    "error",
    "test set whose evaluation fails",
    "The evaluation after training would fail, too: correct the data set.",
)
# Detectron2 keeps the JSON that it converts VOC data to, and never renews it.
STALE_CACHE = add_rule(
    "CHK411",
    "warning",
    "outdated cache of annotations",
    "Detectron2 would evaluate with it: delete it, as focal-det train does.",
)
# Its parser needs fields that training does not.
UNREADABLE_FOR_VOC = add_rule(
    "CHK412",
    "error",
    "annotation that VOC evaluation cannot read",
    "Evaluation would crash: correct it, or evaluate with COCO metrics (evaluator: coco).",
)

# Training set.
ANCHORS_NOT_MEASURED = add_rule(
    "CHK500", "note", "anchors not measured", "They are measured for RetinaNets and RPNs only."
)
ABSENT_CLASS = add_rule(
    "CHK501",
    "warning",
    "class without objects in the training set",
    "It cannot be learned, and evaluation leaves it out or counts it as missed: add images of it, "
    "or remove the class.",
)
# A ratio that the samplers and losses for long tails are made for.
RARE_CLASS = add_rule(
    "CHK502",
    "note",
    "rare class",
    "The most frequent class has at least {ratio} times as many objects. DATALOADER.SAMPLER_TRAIN "
    "RepeatFactorTrainingSampler shows rare classes more often; --write FILE.yaml writes alpha per "
    "class, for losses that take it.",
)
UNREACHED_BOXES = add_rule(
    "CHK503",
    "warning",
    "boxes that no anchor overlaps enough",
    "With an IoU below {iou_thresh} they train on their best anchor only, or on none. --write "
    "FILE.yaml writes anchors that fit better; if none fit better, use larger images.",
)
# Only when nearly all boxes are reached already; else CHK503 says the same.
BETTER_ANCHORS = add_rule(
    "CHK504",
    "note",
    "anchors that could fit better",
    "--write FILE.yaml writes anchors that fit better.",
)
NO_POSITIVE_ANCHOR = add_rule(
    "CHK505",
    "note",
    "boxes without a positive anchor",
    "Other boxes took all their anchors, or no anchor overlaps them enough: more anchors, anchors "
    "that fit better, or larger images may help.",
)
# Section 3.3 of arXiv 1708.02002: without a prior, training with all anchors is unstable.
BACKGROUND_LOSS = add_rule(
    "CHK506",
    "warning",
    "loss of the first step dominated by background",
    "Training would start by learning that nothing is an object, or diverge: set {key}.PRIOR_PROB "
    "to about {prior}, the share of positives among the anchors.",
)
