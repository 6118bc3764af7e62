"""MODEL.FOCAL_DET, the node for settings without a key in Detectron2; how configs are read.

gamma, alpha and the prior pi keep Detectron2's keys: MODEL.RETINANET.FOCAL_LOSS_GAMMA,
FOCAL_LOSS_ALPHA and PRIOR_PROB.
"""

import importlib
import inspect
import os
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Union

import yaml
from fvcore.common.config import CfgNode

from focal_det.messages import UnknownNameError, describe_error, describe_unknown
from focal_det.modeling.build import RETINANET_ARGS, STAGE_ARGS
from focal_det.registry import (
    ASSIGNER_REGISTRY,
    CLS_LOSS_REGISTRY,
    NORMALIZER_REGISTRY,
    ComponentRegistry,
    get_constructor_args,
)

_PACKAGE = Path(__file__).parent
# In a checkout the configs are beside the package; a wheel has them inside.
_CONFIG_FOLDERS = (_PACKAGE / "configs", _PACKAGE.parent / "configs")


def add_focal_det_config(cfg: CfgNode) -> None:
    """Add `MODEL.FOCAL_DET` with its defaults, and make focal_det's models known to Detectron2.

    In a node such as CLS_LOSS, `NAME` selects a component, and `ARGS.<component>` holds constructor
    arguments, so that a file or a command line can set them; only those of the selected component
    are read.
    Components registered before this call are included.
    """
    # Importing these modules registers the models; nothing else of them is used here.
    for name in ("retinanet", "rpn", "roi_heads", "torchvision_backbone"):
        importlib.import_module(f"focal_det.modeling.{name}")
    node = type(cfg)()
    # Classification loss: a name of CLS_LOSS_REGISTRY.
    node.CLS_LOSS = _make_component_node(cfg, "FocalLoss", CLS_LOSS_REGISTRY)
    # Foreground probability pi at the start, per class; if empty, MODEL.RETINANET.PRIOR_PROB (for
    # ROI heads, ROI_BOX_HEAD.PRIOR_PROB below) holds for all classes.
    node.PRIOR_PROB_PER_CLASS = []
    # What decides the label of each anchor: a name of ASSIGNER_REGISTRY.
    assigner_args = ("num_classes",)
    node.ASSIGNER = _make_component_node(cfg, "IoUAssigner", ASSIGNER_REGISTRY, assigner_args)
    # Whether a box gets the anchors it overlaps most even below the foreground threshold.
    # Detectron2 does so, the paper does not.
    node.LOW_QUALITY_MATCHES = True
    # What the summed losses are divided by: a name of NORMALIZER_REGISTRY.
    node.NORMALIZER = _make_component_node(cfg, "EMAPosCount", NORMALIZER_REGISTRY)
    # Every how many iterations statistics of the classification loss are put into the metrics, as
    # `focal_det/...`; 0 for never.
    node.TELEMETRY_PERIOD = 20
    # The stages of a two-stage detector: RPN for FocalRPN, ROI_BOX_HEAD for Focal*ROIHeads. The
    # defaults are Detectron2's own classification losses: cross entropy on a sample.
    node.RPN = _make_stage_node(cfg, "FocalLoss", "SampleSize")
    node.RPN.PRIOR_PROB = 0.5
    node.ROI_BOX_HEAD = _make_stage_node(cfg, "SoftmaxFocalLoss", "SampleCount")
    # No probability: 0 leaves the bias at 0, as in Detectron2.
    node.ROI_BOX_HEAD.PRIOR_PROB = 0.0
    # The classifier of torchvision for build_torchvision_fpn_backbone.
    node.TORCHVISION_BACKBONE = "mobilenet_v2"
    # Data sets to register when the model is built: a list of blocks, see focal_det.data.catalog.
    node.DATASETS = []
    cfg.MODEL.FOCAL_DET = node


def find_config_file(config_file: Union[str, os.PathLike]) -> str:
    """Find a config: the file itself or, if there is none, the shipped config of this name.

    Args:
        config_file: a path or URL, or a name such as "digits/focal_retinanet_tiny.yaml".

    Raises:
        FileNotFoundError: neither exists; the message names the nearest shipped config.
        ValueError: a Lazy config.
    """
    if str(config_file).endswith(".py"):
        raise ValueError(
            f"the config must be a .yaml file, got {str(config_file)!r}; Lazy .py configs run "
            "under Detectron2's tools/lazyconfig_train_net.py"
        )
    if "://" in str(config_file) or os.path.isfile(config_file):
        return str(config_file)
    try:
        return get_config_file(str(config_file))
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"the config {config_file} does not exist (working folder: {os.getcwd()}), "
            f"and focal_det ships none of this name. {error}"
        ) from None


def get_config_file(config_path: str) -> str:
    """Absolute path of a shipped config.

    Args:
        config_path: relative to `configs/`, such as
            "COCO-Detection/focal_retinanet_R_50_FPN_1x.yaml".

    Raises:
        FileNotFoundError: no such config; names the nearest one.
    """
    folder = next((x for x in _CONFIG_FOLDERS if x.is_dir()), _CONFIG_FOLDERS[0])
    file = folder / config_path
    if file.is_file():
        return str(file)
    found = [*folder.rglob("*.yaml"), *folder.rglob("*.py")]
    known = [str(x.relative_to(folder)) for x in found]
    raise FileNotFoundError(describe_unknown(f"config in {folder}:", config_path, known))


class _UnsafeYamlError(ValueError):
    """A yaml file that runs code when it is read."""


class _SafeYaml(CfgNode):
    """Reads a yaml file and its bases; only Detectron2's own files may run code.

    Detectron2's Base-RetinaNet.yaml computes its anchor sizes with `!!python/object/apply:eval`.
    """

    @classmethod
    def load_yaml_with_base(cls, filename: str, allow_unsafe: bool = False) -> dict[str, Any]:
        package = Path(importlib.import_module("detectron2").__path__[0])
        # In an editable install, the folder of the configs is a link out of the package.
        own = {package.resolve(), (package / "model_zoo" / "configs").resolve()}
        is_detectron2s = not own.isdisjoint(Path(filename).resolve().parents)
        try:
            return super().load_yaml_with_base(filename, allow_unsafe=is_detectron2s)
        except yaml.constructor.ConstructorError as error:
            place = ""
            if error.problem_mark is not None:
                place = f", line {error.problem_mark.line + 1}"
            raise _UnsafeYamlError(
                f"{filename} runs code when it is read{place}: {error.problem}. Write the value "
                "out; or, if you trust the file, pass --unsafe-yaml (focal-det train and check)"
            ) from None


def merge_file(cfg: CfgNode, config_file: str, *, unsafe_yaml: bool = False) -> None:
    """Merge a yaml file into a config.

    Args:
        unsafe_yaml: let the file, or one it is based on, run code (`!!python/...`), which
            Detectron2's own configs may do anyway.

    Raises:
        FileNotFoundError: a file that a _BASE_ names does not exist; names both.
        UnknownNameError: a key that does not exist; names the file and the nearest key.
        ValueError: a file that runs code or is not yaml, files that are based on each other, or a
            value of the wrong type; names the file.
    """
    try:
        if not unsafe_yaml:
            _SafeYaml.load_yaml_with_base(config_file)
        # The file is checked by now, or trusted; Detectron2's own configs need `allow_unsafe`.
        cfg.merge_from_file(config_file, allow_unsafe=True)
    except yaml.YAMLError as error:
        raise ValueError(f"{config_file} is not yaml: {error}") from None
    except FileNotFoundError as error:
        missing = f"{error.filename}, which a _BASE_ names, does not exist"
        raise FileNotFoundError(f"{config_file}: {missing}") from None
    except (TypeError, AttributeError) as error:
        raise ValueError(f"{config_file} must have KEY: VALUE lines ({error})") from None
    except _UnsafeYamlError:
        raise
    except ValueError as error:
        raise ValueError(f"{config_file}: {_explain_type(error)}") from None
    except KeyError as error:
        key = re.search(r"key: ([\w.]+)$", str(error.args[0]))
        reason = describe_error(error)  # for a key that was renamed or removed
        if key:
            reason = _describe_unknown_key(cfg, key[1])
        raise UnknownNameError(f"{config_file}: {reason}") from None
    except RecursionError:
        raise ValueError(f"{config_file}: its _BASE_ files are based on each other") from None
    # Detectron2 asserts that it knows the VERSION.
    except AssertionError as error:
        raise ValueError(f"{config_file}: {error}") from None


def _describe_unknown_key(cfg: CfgNode, key: str) -> str:
    """Error text for a key that does not exist, with the nearest one; empty if it exists."""
    node = cfg
    parts = key.split(".")
    for i, part in enumerate(parts):
        # The parent of a mistyped key may be a value, as in SOLVER.BASE_LR.x.
        known = node if isinstance(node, CfgNode) else ()
        if part not in known:
            parent = ".".join(parts[:i]) or "the config"
            return f"{key}: {describe_unknown(f'key of {parent}', part, known)}"
        node = node[part]
    return ""


def merge_options(cfg: CfgNode, options: Sequence[str]) -> None:
    """Merge KEY VALUE pairs of a command line into a config.

    Raises:
        UnknownNameError: no such key; names the nearest one.
        ValueError: a flag among the pairs, a key without a value, or a value of the wrong type.
    """
    flags = [x for x in options if x.startswith("--")]
    if flags:
        raise ValueError(f"KEY VALUE pairs come last; {flags[0]} must stand before them")
    if len(options) % 2:
        raise ValueError(f"options are KEY VALUE pairs; {options[-1]!r} has no value")
    for key in options[0::2]:
        if cfg.key_is_deprecated(key) or cfg.key_is_renamed(key):
            # The error of `merge_from_list` says what has become of the key.
            continue
        unknown = _describe_unknown_key(cfg, key)
        if unknown:
            raise UnknownNameError(unknown)
    try:
        cfg.merge_from_list(list(options))
    except ValueError as error:
        raise ValueError(_explain_type(error)) from None
    # Raised for a key that was renamed or removed.
    except KeyError as error:
        raise UnknownNameError(describe_error(error)) from None


def _explain_type(error: ValueError) -> str:
    """The message of yacs for a value of the wrong type, and how to write the value."""
    found = re.search(
        r"\(<class '(\w+)'> vs\. <class '(\w+)'>\) with values \(.* vs\. (.*)\) for config key",
        str(error),
    )
    hints = {
        ("float", "int"): "{}.0",
        ("tuple", "str"): "\"('{}',)\"",
        ("tuple", "int"): '"({},)"',
        ("list", "str"): "\"['{}']\"",
    }
    if found is None:
        return str(error)
    expected, given, value = found.groups()
    hint = hints.get((expected, given))
    # A value with quotes or brackets cannot be put into the hint.
    if hint is None or not re.fullmatch(r"[\w.-]+", value):
        return str(error)
    return f"{error}: write {hint.format(value)}"


def _make_stage_node(cfg: CfgNode, cls_loss: str, normalizer: str) -> CfgNode:
    """Settings of a stage, without its prior: the loss, its divisor and the sampling.

    Args:
        cls_loss: name of a loss with alpha and gamma; -1 and 0 make it cross entropy by default.
    """
    node = type(cfg)()
    node.CLS_LOSS = _make_component_node(cfg, cls_loss, CLS_LOSS_REGISTRY, STAGE_ARGS)
    node.CLS_LOSS.ARGS[cls_loss].alpha = -1.0
    node.CLS_LOSS.ARGS[cls_loss].gamma = 0.0
    node.NORMALIZER = _make_component_node(cfg, normalizer, NORMALIZER_REGISTRY, STAGE_ARGS)
    # What the loss is computed on: "random", a sample of which up to POSITIVE_FRACTION is
    # positive; "none", all anchors or proposals; "hard", those with the largest losses.
    node.SAMPLING = "random"
    return node


def _make_component_node(
    cfg: CfgNode,
    name: str,
    registry: ComponentRegistry,
    known_args: Collection[str] = tuple(RETINANET_ARGS),
) -> CfgNode:
    """A node of the type of `cfg` with NAME, and with ARGS for each registered component.

    Unknown keys are let in: `ComponentRegistry.build` refuses them and names the nearest match.

    Args:
        known_args: arguments to leave out, as another key of the config sets them.
    """
    make_node = type(cfg)
    node = make_node()
    node.NAME = name
    node.ARGS = make_node(new_allowed=True)
    for component_name, component in registry:
        defaults = _get_defaults(component, known_args)
        node.ARGS[component_name] = make_node(defaults, new_allowed=True)
    return node


def _get_defaults(component: type, known_args: Collection[str]) -> dict[str, Any]:
    """Defaults of the constructor arguments, without `known_args`."""
    defaults = {}
    for key, value in get_constructor_args(component).items():
        if key in known_args or value is inspect.Parameter.empty:
            continue
        # yaml has no tuples.
        defaults[key] = list(value) if isinstance(value, tuple) else value
    return defaults
