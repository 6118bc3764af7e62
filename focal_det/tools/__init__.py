"""Programs of focal_det, one per file: `focal-det <name>` or `python -m focal_det.tools.<name>`."""

import warnings

# fvcore compiles its own losses on import, which current torch warns about. The filter is here
# because this module is imported before any program, and so before Detectron2.
warnings.filterwarnings("ignore", "`torch.jit")
