"""MODEL.FOCAL_DET: the config node for what Detectron2 has no key for, and the components built from it.

gamma, alpha and the prior pi keep Detectron2's keys: MODEL.RETINANET.FOCAL_LOSS_GAMMA, FOCAL_LOSS_ALPHA and PRIOR_PROB.
"""

import inspect
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import focal_det.host  # noqa: F401  (first: says how to get Detectron2)

import detectron2
import yaml
from detectron2.config import CfgNode
from torch import nn

from focal_det import losses, normalizers  # noqa: F401  (registers the components)
from focal_det.losses import ClsLoss
from focal_det.registry import (
    CLS_LOSS_REGISTRY,
    NORMALIZER_REGISTRY,
    ComponentRegistry,
    describe_unknown,
    get_constructor_args,
)

# Constructor arguments that have a key of Detectron2's.
_RETINANET_KEYS = {
    "alpha": "FOCAL_LOSS_ALPHA",
    "gamma": "FOCAL_LOSS_GAMMA",
    "num_classes": "NUM_CLASSES",
}


def add_focal_det_config(cfg: CfgNode) -> None:
    """Add `MODEL.FOCAL_DET` with its defaults, and make FocalRetinaNet known to Detectron2.

    A component's `ARGS.<its name>` holds its constructor's arguments, so that they can be set from a file or the command line;
    only the entry of `NAME` is read. Components registered before this call are included.
    """
    import focal_det.meta_arch  # noqa: F401  (registers the architecture)

    node = CfgNode()
    # Classification loss: a name of CLS_LOSS_REGISTRY.
    node.CLS_LOSS = _component_node("FocalLoss", CLS_LOSS_REGISTRY)
    # Foreground probability pi at the start, one for each class; empty: MODEL.RETINANET.PRIOR_PROB for all.
    node.PRIOR_PROB_PER_CLASS = []
    # Whether a box gets the anchors it overlaps most even below the foreground threshold, as in Detectron2; not so in the paper.
    node.LOW_QUALITY_MATCHES = True
    # What the summed losses are divided by: a name of NORMALIZER_REGISTRY.
    node.NORMALIZER = _component_node("EMAPosCount", NORMALIZER_REGISTRY)
    # Iterations between figures of the classification loss in the metrics (focal_det/...); 0 for none.
    node.TELEMETRY_PERIOD = 20
    # Data sets to register when the model is built: a list of blocks, see focal_det.data.catalog.
    node.DATASETS = []
    cfg.MODEL.FOCAL_DET = node


def flatten_config(node: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Values by their full keys, of a config or of the mapping that it was dumped from."""
    values: dict[str, Any] = {}
    for key, value in node.items():
        values.update(
            flatten_config(value, f"{prefix}{key}.")
            if isinstance(value, Mapping)
            else {prefix + key: value}
        )
    return values


class _SafeYaml(CfgNode):
    """Reads a yaml file and those it is based on; only Detectron2's own may run code, as its Base-RetinaNet.yaml does."""

    @classmethod
    def load_yaml_with_base(cls, filename: str, allow_unsafe: bool = False) -> dict[str, Any]:
        package = Path(detectron2.__file__).parent
        own = {
            package.resolve(),
            (package / "model_zoo" / "configs").resolve(),
        }  # a link, of an editable install
        is_detectron2s = not own.isdisjoint(Path(filename).resolve().parents)
        try:
            return super().load_yaml_with_base(filename, allow_unsafe=is_detectron2s)
        except yaml.constructor.ConstructorError as error:
            raise ValueError(
                f"{filename} runs code when it is read, line {error.problem_mark.line + 1}: {error.problem}. Write the "
                "value out; or, if you trust the file, --unsafe-yaml (of focal-det train and check)"
            ) from None


def merge_file(cfg: CfgNode, config_file: str, *, unsafe_yaml: bool = False) -> None:
    """Merge a yaml file; what is wrong with it is told by file and key, with the nearest key.

    Args:
        unsafe_yaml: let the file, or one it is based on, run code (`!!python/...`); Detectron2's own configs may do so anyway.

    Raises:
        KeyError: a key that does not exist.
        ValueError: a file that runs code, or is not yaml.
    """
    try:
        if not unsafe_yaml:
            _SafeYaml.load_yaml_with_base(config_file)
        cfg.merge_from_file(config_file, allow_unsafe=True)
    except yaml.YAMLError as error:
        raise ValueError(f"{config_file} is not yaml: {error}") from None
    except (TypeError, AttributeError) as error:
        raise ValueError(f"{config_file} must have KEY: VALUE lines ({error})") from None
    except ValueError as error:
        raise ValueError(
            str(error) if "runs code" in str(error) else f"{config_file}: {_explain_type(error)}"
        ) from None
    except KeyError as error:
        key = re.search(r"key: ([\w.]+)$", str(error.args[0]))
        if key is None:
            raise
        raise KeyError(f"{config_file}: {_describe_unknown_key(cfg, key[1])}") from None


def _describe_unknown_key(cfg: CfgNode, key: str) -> str:
    """Where a key leaves the config, and the nearest one there; empty for a key that exists."""
    node, parts = cfg, key.split(".")
    for i, part in enumerate(parts):
        beside = node if isinstance(node, CfgNode) else ()
        if part not in beside:
            return f"{key}: {describe_unknown('key of ' + ('.'.join(parts[:i]) or 'the config'), part, beside)}"
        node = node[part]
    return ""


def check_finite(cfg: CfgNode) -> None:
    """Refuse NaN and infinity, which yaml can have and which a training finds after a step or never.

    Raises:
        ValueError: names the keys.
    """
    wrong = find_not_finite(cfg)
    if wrong:
        raise ValueError(
            f"the config has numbers that are not finite: {', '.join(f'{k} {v}' for k, v in wrong.items())}"
        )


def find_not_finite(cfg: CfgNode) -> dict[str, Any]:
    """Keys and values that are or contain NaN or infinity, but for the order of a norm, which may be infinite."""
    return {
        k: v
        for k, v in flatten_config(cfg).items()
        if not _is_finite(v) and not (k.endswith("NORM_TYPE") and v == math.inf)
    }


def _is_finite(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_is_finite, value))
    return not isinstance(value, float) or math.isfinite(value)


def merge_options(cfg: CfgNode, options: Sequence[str]) -> None:
    """Merge KEY VALUE pairs of a command line; the error for a key that does not exist names the nearest one beside it.

    Raises:
        KeyError: no such key.
        ValueError: a value of the wrong type.
    """
    for key in options[0::2]:
        if cfg.key_is_deprecated(key) or cfg.key_is_renamed(key):
            continue  # of which Detectron2 has more to say
        unknown = _describe_unknown_key(cfg, key)
        if unknown:
            raise KeyError(unknown)
    try:
        cfg.merge_from_list(list(options))
    except ValueError as error:
        raise ValueError(_explain_type(error)) from None


def _explain_type(error: ValueError) -> str:
    """What yacs says of a value of the wrong type, and how to write it."""
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
    hint = hints.get(found.groups()[:2]) if found else None
    is_plain = found and re.fullmatch(r"[\w.-]+", found[3])
    return f"{error}: write {hint.format(found[3])}" if hint and is_plain else str(error)


def build_cls_loss(cfg: CfgNode) -> ClsLoss:
    """Build `MODEL.FOCAL_DET.CLS_LOSS`."""
    retinanet = {arg: cfg.MODEL.RETINANET[key] for arg, key in _RETINANET_KEYS.items()}
    cls_loss = _build(CLS_LOSS_REGISTRY, "CLS_LOSS", cfg, **retinanet)
    try:
        cls_loss.num_outputs(cfg.MODEL.RETINANET.NUM_CLASSES)
    except ValueError as error:
        raise ValueError(f"MODEL.FOCAL_DET.CLS_LOSS: {error}") from error
    return cls_loss


def build_normalizer(cfg: CfgNode) -> nn.Module:
    """Build `MODEL.FOCAL_DET.NORMALIZER`."""
    return _build(NORMALIZER_REGISTRY, "NORMALIZER", cfg)


def _build(registry: ComponentRegistry, key: str, cfg: CfgNode, **defaults: float) -> nn.Module:
    node = cfg.MODEL.FOCAL_DET[key]
    for name in node.ARGS:
        if name not in dict(registry):
            raise KeyError(
                describe_unknown(
                    f"{registry.kind} in MODEL.FOCAL_DET.{key}.ARGS", name, dict(registry)
                )
            )
    try:
        return registry.build(node.NAME, node.ARGS.get(node.NAME, {}), **defaults)
    except (KeyError, ValueError) as error:
        raise type(error)(f"MODEL.FOCAL_DET.{key}: {error.args[0]}") from error


def _component_node(name: str, registry: ComponentRegistry) -> CfgNode:
    """NAME and, per registered component, ARGS; new keys are let in, so that the component itself can name the nearest match."""
    node = CfgNode()
    node.NAME = name
    node.ARGS = CfgNode(new_allowed=True)
    for component_name, component in registry:
        args = get_constructor_args(component).items()
        args = [(k, list(v) if isinstance(v, tuple) else v) for k, v in args]
        defaults = {
            k: v for k, v in args if k not in _RETINANET_KEYS and v is not inspect.Parameter.empty
        }
        node.ARGS[component_name] = CfgNode(defaults, new_allowed=True)
    return node
