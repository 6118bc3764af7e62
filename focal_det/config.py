"""MODEL.FOCAL_DET: the config node for what Detectron2 has no key for, and the components built from it.

gamma, alpha and the prior pi keep Detectron2's keys: MODEL.RETINANET.FOCAL_LOSS_GAMMA, FOCAL_LOSS_ALPHA and PRIOR_PROB.
"""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import focal_det.host  # noqa: F401  (first: says how to get Detectron2)

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
_RETINANET_KEYS = {"alpha": "FOCAL_LOSS_ALPHA", "gamma": "FOCAL_LOSS_GAMMA", "num_classes": "NUM_CLASSES"}


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
    # Data sets to register when the model is built: a list of blocks, see focal_det.data.catalog.
    node.DATASETS = []
    cfg.MODEL.FOCAL_DET = node


def flatten_config(node: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Values by their full keys, of a config or of the mapping that it was dumped from."""
    values: dict[str, Any] = {}
    for key, value in node.items():
        values.update(flatten_config(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value})
    return values


def merge_options(cfg: CfgNode, options: Sequence[str]) -> None:
    """Merge KEY VALUE pairs of a command line; the error for a key that does not exist names the nearest one beside it.

    Raises:
        KeyError: no such key.
    """
    for key in options[0::2]:
        if cfg.key_is_deprecated(key) or cfg.key_is_renamed(key):
            continue  # of which Detectron2 has more to say
        node, parts = cfg, key.split(".")
        for i, part in enumerate(parts):
            beside = node if isinstance(node, CfgNode) else ()
            if part not in beside:
                raise KeyError(f"{key}: {describe_unknown('key of ' + ('.'.join(parts[:i]) or 'the config'), part, beside)}")
            node = node[part]
    cfg.merge_from_list(list(options))


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
            raise KeyError(describe_unknown(f"{registry.kind} in MODEL.FOCAL_DET.{key}.ARGS", name, dict(registry)))
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
        defaults = {k: v for k, v in args if k not in _RETINANET_KEYS and v is not inspect.Parameter.empty}
        node.ARGS[component_name] = CfgNode(defaults, new_allowed=True)
    return node
