"""Stops a run before a non-finite loss or gradient reaches the optimizer."""

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.utils import comm
from torch import Tensor, nn

from focal_det.messages import shorten

from .nonfinite_step import (
    compute_largest_outputs,
    find_nonfinite_gradients,
    get_step_files,
    save_step,
)
from .processes import agree_on
from .run_state import get_torch_generators

_MAX_NAMES = 5
# A loss has diverged above this multiple of the first loss. A first loss below 1, such as that of a
# batch without objects, counts as 1.
_DIVERGED_RATIO = 1000
# How many steps in a row may have a diverged loss, or be skipped by the loss scaler, before the run
# stops. After this many skipped steps, a loss scale of 2**16 has been halved to below 1.
_PATIENCE = 30
_MAX_OUTPUT = 1e4  # above it, a |logit| or |delta| has diverged; the sigmoid saturates near 20
# How long to wait until the other processes have written their file of the step, before the error
# of this process ends them.
_WAIT_SECONDS = 30.0

# Prefix of the exit message when StepGuard stops a run; `focal-det sweep` looks for it.
DIVERGED = "diverged: "


class DivergedError(FloatingPointError):
    """A loss or gradient is non-finite, or a run has diverged; the message has the details."""


@dataclass
class Progress:
    """What a StepGuard remembers of earlier steps.

    Attributes:
        first_loss: sum of the losses of the first step, None before it.
        last_loss: sum of the losses of the last step.
        num_skipped: steps in a row that the loss scaler has skipped.
        num_diverged: steps in a row with a loss far above the first.
    """

    first_loss: Optional[float] = None
    last_loss: float = 0.0
    num_skipped: int = 0
    num_diverged: int = 0

    def state_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name, value in state.items():
            setattr(self, name, value)


class StepGuard(HookBase):
    """Stops a run before a non-finite loss or gradient reaches the optimizer.

    Uses forward hooks on the model and wraps `optimizer.step`, because Detectron2 0.5 has no hook
    between backward and step. (torch's own optimizer hooks would see gradients that Detectron2 main
    has already clipped.) The guard waits for the device once per step. It also stops

    - a mixed-precision run whose loss scaler skips too many steps in a row,
    - a run whose loss is finite, but over a thousand times the first loss, for too many steps.

    Whenever it stops a run, it keeps the step in a file, with the state before the step: the
    weights have not been stepped, and the buffers that the forward pass changed are restored.

    Args:
        cfg: config of the run, to be kept with such a step.

    Attributes:
        progress: what it remembers of earlier steps; a resumed run restores it.
    """

    def __init__(self, cfg: CfgNode) -> None:
        self._cfg = cfg
        self._batch: list[dict[str, Any]] = []
        self._losses: dict[str, Tensor] = {}
        self._generators: dict[str, Tensor] = {}
        self.progress = Progress()
        self._buffers: list[Tensor] = []
        self._undo: list[Callable[[], Any]] = []
        self._start_time = 0.0

    def before_train(self) -> None:
        model = self.trainer.model
        optimizer = self.trainer.optimizer
        step = optimizer.step
        self._start_time = time.time()

        # Learning rate schedulers mark `step` with attributes, which `wraps` copies.
        @functools.wraps(step)
        def check_and_step(*args: Any, **kwargs: Any) -> Any:
            self.check()
            return step(*args, **kwargs)

        optimizer.step = check_and_step
        self._undo = [
            functools.partial(setattr, optimizer, "step", step),
            model.register_forward_pre_hook(self._before_forward).remove,
            model.register_forward_hook(self._after_forward).remove,
        ]

    def after_step(self) -> None:
        # `check` has set `num_skipped` to -1, unless the loss scaler skipped the step.
        self.progress.num_skipped += 1
        # All processes skip the same steps, because their gradients are the same.
        if self.progress.num_skipped > 0 and agree_on(not self._has_finite_losses()):
            self.stop()
        if self.progress.num_skipped > _PATIENCE and find_nonfinite_gradients(self._model):
            self.stop(
                f"gradients have been non-finite for {self.progress.num_skipped} iterations in a "
                "row, at ever smaller loss scales"
            )

    def after_train(self) -> None:
        for undo in self._undo:
            undo()

    @property
    def _model(self) -> nn.Module:
        """The model itself, even if DistributedDataParallel wraps it."""
        return getattr(self.trainer.model, "module", self.trainer.model)

    def _before_forward(self, model: nn.Module, inputs: tuple) -> None:
        if not model.training:
            return
        self._batch = inputs[0]
        self._losses = {}
        self._generators = get_torch_generators()
        if self._buffers:
            # One kernel, into the same memory: a clone per step would cost a launch per buffer.
            torch._foreach_copy_(self._buffers, list(model.buffers()))
        else:
            self._buffers = [x.clone() for x in model.buffers()]

    def _after_forward(self, model: nn.Module, inputs: tuple, losses: Any) -> None:
        if model.training:
            self._losses = {k: v.detach() for k, v in losses.items()}

    def _has_finite_losses(self) -> bool:
        return all(bool(x.isfinite()) for x in self._losses.values())

    def check(self) -> None:
        """Check the losses and gradients of this step.

        Raises:
            DivergedError: one is non-finite, or the loss has been too high for too many steps.
        """
        self.progress.num_skipped = -1
        losses, norm = self._read_losses_and_norm()
        if not all(map(math.isfinite, losses)):
            self.stop()
        # Finite gradients above 1e19 have an infinite norm too, so each gradient is checked.
        if not math.isfinite(norm) and find_nonfinite_gradients(self._model):
            self.stop("a gradient is non-finite")

        self.progress.last_loss = sum(losses)
        if self.progress.first_loss is None:
            self.progress.first_loss = self.progress.last_loss
        divergence = self._describe_loss()
        self.progress.num_diverged = self.progress.num_diverged + 1 if divergence else 0
        if self.progress.num_diverged > _PATIENCE:
            self.stop(
                f"the run has diverged: {divergence}, for {self.progress.num_diverged} iterations "
                "in a row"
            )

    def _read_losses_and_norm(self) -> tuple[list[float], float]:
        """The losses and the sum of the gradients' norms, with a single wait for the device."""
        grads = [
            x.grad
            for group in self.trainer.optimizer.param_groups
            for x in group["params"]
            if x.grad is not None
        ]
        values = [x.float() for x in self._losses.values()]
        if grads:
            # The sum of the norms will do: it can be finite only if each of them is.
            values.append(torch.stack(torch._foreach_norm(grads)).sum().float())
        numbers = torch.stack(values).tolist()
        num_losses = len(self._losses)
        return numbers[:num_losses], sum(numbers[num_losses:])

    def _describe_loss(self) -> str:
        """How far a finite loss is above the first one; empty if it has not diverged."""
        first = self.progress.first_loss
        last = self.progress.last_loss
        if first is None or last <= _DIVERGED_RATIO * max(1.0, first):
            return ""
        return f"the loss is {last:.3g}, and was {first:.3g} at the start"

    def stop_for(self, error: FloatingPointError) -> None:
        """Stop because Detectron2 has raised this error about a number that is infinite or NaN.

        Raises:
            DivergedError: always.
        """
        if not self._losses:
            # The forward pass raised it, which can happen in any process, not only in the first.
            # The others wait for this process in their backward pass, and end with it.
            self.stop(f"the forward pass has stopped: {error}")
        # Otherwise this is the first process, which alone checks the losses of all.
        if self._cfg.SOLVER.AMP.ENABLED:
            # In the other processes, the loss scaler skips this step, and `after_step` waits in
            # `agree_on` until all processes have called it.
            agree_on(True)
        self.stop()

    def stop(self, reason: str = "the loss of another process is non-finite") -> None:
        """Keep the step in OUTPUT_DIR, wait for the other processes to do so, and raise.

        Args:
            reason: reported if all losses of this process are finite.

        Raises:
            DivergedError: always.
            DiskFullError: the step does not fit on the disk.
        """
        model = self._model
        gradients = find_nonfinite_gradients(model)
        if self._buffers:
            torch._foreach_copy_(list(model.buffers()), self._buffers)
        iteration = self.trainer.iter
        folder = Path(self._cfg.OUTPUT_DIR)
        files = get_step_files(folder, iteration, comm.get_world_size())
        file = files[comm.get_rank()]
        save_step(
            file,
            model,
            self.trainer.optimizer,
            self._batch,
            iteration=iteration,
            cfg=self._cfg,
            generators=self._generators,
        )
        largest = compute_largest_outputs(model, self._batch)
        _wait_for(files, self._start_time)
        lines = [
            f"Iteration {iteration}: {self._describe_losses(reason)}. "
            "The optimizer was not stepped.",
            *_describe_gradients(gradients),
            *_describe_batch(self._batch),
            *(f"largest {k}, in evaluation mode: {v:.4g}" for k, v in largest.items()),
            f"kept: {file} has the batch and the state before this step. To repeat the step: "
            f"focal-det reproduce {file}",
            _advise(folder),
        ]
        raise DivergedError("\n  ".join(lines))

    def _describe_losses(self, reason: str) -> str:
        """The non-finite losses, or else a reason; then the finite ones and the learning rate."""
        losses = {k: float(v) for k, v in self._losses.items()}
        nonfinite = [f"{k} is {v}" for k, v in losses.items() if not math.isfinite(v)]
        finite = {k: v for k, v in losses.items() if math.isfinite(v)}
        finite["learning rate"] = self.trainer.optimizer.param_groups[0]["lr"]
        shown = ", ".join(f"{k} {v:.4g}" for k, v in finite.items())
        return f"{' and '.join(nonfinite) or reason} ({shown})"

    def find_divergence(self) -> Optional[str]:
        """How the model has diverged, None if it has not.

        It has diverged if a tensor of its state is non-finite, if its outputs on the last batch are
        huge, or if the loss is far above the first one. The outputs are computed with the weights
        after the last step, which no loss has seen yet.
        """
        model = self._model
        nonfinite = [
            k
            for k, v in model.state_dict().items()
            if v.is_floating_point() and not v.isfinite().all()
        ]
        if nonfinite:
            return f"{len(nonfinite)} tensors are non-finite: {shorten(nonfinite, _MAX_NAMES)}"
        if self._batch:
            for name, value in compute_largest_outputs(model, self._batch).items():
                if not value < _MAX_OUTPUT:  # also true for NaN
                    return f"the largest {name} on the last batch is {value:.3g}"
        return self._describe_loss() or None


def _wait_for(files: Sequence[Path], start_time: float) -> None:
    """Wait, for a limited time, until all files exist and are newer than `start_time`.

    The files of a process on another machine may be on a disk that is not seen here.
    """
    deadline = time.monotonic() + _WAIT_SECONDS
    while time.monotonic() < deadline:
        if all(x.is_file() and x.stat().st_mtime >= start_time for x in files):
            return
        time.sleep(0.1)


def _describe_gradients(names: Sequence[str]) -> list[str]:
    """A line about the parameters with a non-finite gradient, if any."""
    if not names:
        return []
    shown = shorten(names, _MAX_NAMES)
    return [f"gradients: those of {len(names)} parameters are non-finite: {shown}"]


def _describe_batch(batch: Sequence[dict[str, Any]]) -> list[str]:
    """A line that lists the images; then a line for those with non-finite pixels, if there are
    any, and one for those with non-finite boxes.
    """
    names = [str(x.get("file_name", x.get("image_id", i))) for i, x in enumerate(batch)]
    images = []
    boxes = []
    for name, item in zip(names, batch):
        if not item["image"].isfinite().all():
            images.append(name)
        if "instances" in item and not item["instances"].gt_boxes.tensor.isfinite().all():
            boxes.append(name)
    lines = [f"images: {', '.join(names)}"]
    if images:
        lines.append(f"images with non-finite pixels: {', '.join(images)}")
    if boxes:
        lines.append(f"images with non-finite boxes: {', '.join(boxes)}")
    return lines


def _advise(folder: Path) -> str:
    start = "there is no checkpoint yet; start again with"
    if (folder / "last_checkpoint").is_file():
        start = "to continue from the last checkpoint: --resume, with"
    return f"{start} a lower SOLVER.BASE_LR, a longer warm-up, or SOLVER.CLIP_GRADIENTS"
