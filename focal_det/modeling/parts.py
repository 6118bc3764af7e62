"""The parts of a detector that a config selects, and which keys of MODEL.FOCAL_DET they read.

A part of focal_det, a class or a function, declares these keys in `focal_det_keys`, which its
subclasses inherit. Detectron2's own parts read none.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from detectron2.config import CfgNode
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY
from detectron2.modeling.proposal_generator import PROPOSAL_GENERATOR_REGISTRY
from detectron2.modeling.roi_heads import ROI_HEADS_REGISTRY

from .build import flatten_config, get_value, read_settings

# For each part, the key that selects it, and the registry it is selected from.
_REGISTRIES = {
    "MODEL.META_ARCHITECTURE": META_ARCH_REGISTRY,
    "MODEL.PROPOSAL_GENERATOR.NAME": PROPOSAL_GENERATOR_REGISTRY,
    "MODEL.ROI_HEADS.NAME": ROI_HEADS_REGISTRY,
    "MODEL.BACKBONE.NAME": BACKBONE_REGISTRY,
}
ARCHITECTURE, PROPOSAL_GENERATOR, ROI_HEADS, BACKBONE = _REGISTRIES
# Keys that select the parts of a detector, by `DetectorSettings.node_key`.
_PART_KEYS = {
    "MODEL.RETINANET": (ARCHITECTURE, BACKBONE),
    "MODEL.ROI_HEADS": (ROI_HEADS, PROPOSAL_GENERATOR, ARCHITECTURE, BACKBONE),
}
# Data and metrics, which change no detector.
_HARMLESS = frozenset({"DATASETS", "TELEMETRY_PERIOD"})


@dataclass(frozen=True)
class UnreadSettings:
    """Changed keys of MODEL.FOCAL_DET that no part of a detector reads.

    Attributes:
        values: by full key.
        readers: names of the parts that would read them.
        part_key: full key that would have to select another part.
        part: what it selects now.
    """

    values: Mapping[str, Any]
    readers: Sequence[str]
    part_key: str
    part: str


def get_part(cfg: CfgNode, part_key: str) -> type:
    """The class that a key selects; `object` if it selects a function or nothing that exists."""
    part = _get_class_or_function(cfg, part_key)
    return part if isinstance(part, type) else object


def _get_class_or_function(cfg: CfgNode, part_key: str) -> Any:
    name = get_value(cfg, part_key)
    registry = _REGISTRIES[part_key]
    return registry.get(name) if name in registry else None


def get_keys_read(part: Any) -> Collection[str]:
    """The keys below MODEL.FOCAL_DET that a part declares in `focal_det_keys`."""
    keys: Collection[str] = getattr(part, "focal_det_keys", ())
    return keys


def find_readers(part_key: str, name: str) -> list[str]:
    """Names of the parts that a key can select and that read `name` below MODEL.FOCAL_DET."""
    return [x for x, part in _REGISTRIES[part_key] if name in get_keys_read(part)]


def find_unread(cfg: CfgNode, defaults: CfgNode) -> list[UnreadSettings]:
    """Changed keys of MODEL.FOCAL_DET that the detector does not read.

    Args:
        defaults: a config without changes.
    """
    part_keys = _PART_KEYS.get(read_settings(cfg).node_key, ())
    # What an unknown architecture reads is not known either.
    if not part_keys:
        return []
    parts = [_get_class_or_function(cfg, key) for key in part_keys]
    read = {name for part in parts for name in get_keys_read(part)}
    unread = []
    for name in sorted({*defaults.MODEL.FOCAL_DET} - read - _HARMLESS):
        changed = _find_changed(cfg.MODEL.FOCAL_DET, defaults.MODEL.FOCAL_DET, name)
        by_part = {key: find_readers(key, name) for key in (*part_keys, *_REGISTRIES)}
        part_key = next((key for key, readers in by_part.items() if readers), None)
        if not changed or part_key is None:
            continue
        readers = by_part[part_key]
        # A RetinaNet has no such part, so only another architecture would read the keys.
        if part_key not in part_keys:
            part_key = ARCHITECTURE
        unread.append(UnreadSettings(changed, readers, part_key, get_value(cfg, part_key)))
    return unread


def _find_changed(node: CfgNode, defaults: CfgNode, name: str) -> dict[str, Any]:
    """The values of one key, or of all keys below it, that are not the defaults; by full key."""
    known = flatten_config({name: defaults[name]}, "MODEL.FOCAL_DET.")
    values = flatten_config({name: node[name]}, "MODEL.FOCAL_DET.")
    return {key: x for key, x in values.items() if key not in known or x != known[key]}
