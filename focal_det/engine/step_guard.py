"""Stops a training before the optimizer takes in a loss or gradient that is not finite, and keeps all that led to it."""

import functools
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Optional

import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.structures import Boxes, Instances
from detectron2.utils import comm
from torch import Tensor, nn

from focal_det.files import open_to_replace
from focal_det.messages import shorten

_MAX_NAMES = 5
_DIVERGED = 1000  # times the loss of the first step, or 1 if that is less, as without objects
_PATIENCE = 30  # iterations in a row; with so many steps left out, a loss scale of 2**16 is below 1
_WAIT_SECONDS = (
    30.0  # for other processes to keep the step too, before this one ends them by its error
)
_MAX_OUTPUT = 1e4  # |logit| or |delta|; a sigmoid says no more than 1 from 20 on
_FIELDS = ("file_name", "image_id", "height", "width")

# Prefix of the exit message when StepGuard stops a run; `focal-det sweep` looks for it.
DIVERGED = "diverged: "


class DivergedError(FloatingPointError):
    """A loss or gradient that is not finite; the message says of what, and where the step is kept."""


class StepGuard(HookBase):
    """Looks at losses and gradients before each step of the optimizer; needs one wait for the device.

    It hangs on the model's forward and stands before the optimizer's step, as Detectron2 0.5 has no place between backward and
    step. (torch's hooks of an optimizer would come too late: where Detectron2 clips gradients, they see the clipped ones.)
    In mixed precision, the loss scaler leaves out steps whose gradient is not finite; too many in a row are a stop too, and so are
    too many iterations in a row whose loss is finite but a thousand times that of the start.
    The state it keeps is the last good one: the weights have not been stepped, and buffers that the forward changed are put back.

    Args:
        cfg: of the run, kept with the step.
    """

    def __init__(self, cfg: CfgNode) -> None:
        self._cfg = cfg
        self._batch: list[dict[str, Any]] = []
        self._losses: dict[str, Tensor] = {}
        self._first_loss: Optional[float] = None
        self._last_loss = 0.0
        self._num_skipped = self._num_diverged = 0
        self._buffers: list[Tensor] = []
        self._undo: list[Callable[[], None]] = []
        self._start_time = 0.0

    def before_train(self) -> None:
        model, optimizer = self.trainer.model, self.trainer.optimizer
        step, self._start_time = optimizer.step, time.time()

        @functools.wraps(step)  # with what a scheduler of the learning rate has noted on it
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
        self._num_skipped += 1
        if self._num_skipped > 0 and not all(x.isfinite() for x in self._losses.values()):
            self.stop()
        if self._num_skipped > _PATIENCE and find_nonfinite_gradients(self.trainer.model):
            self.stop(
                f"gradients have not been finite for {self._num_skipped} iterations in a row, at ever smaller loss scales"
            )

    def after_train(self) -> None:
        for undo in self._undo:
            undo()

    def _before_forward(self, model: nn.Module, inputs: tuple) -> None:
        if model.training:
            self._batch = inputs[0]
            if self._buffers:
                torch._foreach_copy_(self._buffers, list(model.buffers()))
            else:
                self._buffers = [x.clone() for x in model.buffers()]

    def _after_forward(self, model: nn.Module, inputs: tuple, losses: Any) -> None:
        if model.training:
            self._losses = {k: v.detach() for k, v in losses.items()}

    def check(self) -> None:
        """Raise DivergedError if a loss or gradient of this step is not finite, or the loss has been far too high for long."""
        self._num_skipped = -1  # until `after_step` of this iteration
        values = [x.float() for x in self._losses.values()]
        grads = [
            x.grad
            for group in self.trainer.optimizer.param_groups
            for x in group["params"]
            if x.grad is not None
        ]
        if grads:
            values.append(torch.stack(torch._foreach_norm(grads)).sum().float())
        values = torch.stack(values).tolist()
        losses = values[: len(self._losses)]
        if not all(map(math.isfinite, losses)):
            self.stop()
        # A norm is infinite for finite gradients above 1e19 as well, so they are looked at again.
        if not all(map(math.isfinite, values)) and find_nonfinite_gradients(self.trainer.model):
            self.stop("a gradient is not finite")
        self._last_loss = sum(losses)
        self._first_loss = self._last_loss if self._first_loss is None else self._first_loss
        divergence = self._describe_divergence()
        self._num_diverged = self._num_diverged + 1 if divergence else 0
        if self._num_diverged > _PATIENCE:
            self.stop(f"{divergence}, for {self._num_diverged} iterations in a row")

    def _describe_divergence(self) -> str:
        """What is wrong with a loss that is finite, if anything."""
        if self._first_loss is None or self._last_loss <= _DIVERGED * max(1.0, self._first_loss):
            return ""
        return f"the training has diverged: the loss is {self._last_loss:.3g}, and was {self._first_loss:.3g} at the start"

    def stop(self, why: str = "the loss of another process is not finite") -> None:
        """Keep the step in OUTPUT_DIR, wait until all processes have, and raise DivergedError.

        Args:
            why: what to say if all losses of this process are finite.
        """
        iteration, model = self.trainer.iter, self.trainer.model
        losses = {k: float(v) for k, v in self._losses.items()}
        layers = find_nonfinite_gradients(model)
        if self._buffers:
            torch._foreach_copy_(list(model.buffers()), self._buffers)
        files = [
            Path(self._cfg.OUTPUT_DIR) / f"nonfinite_step_{iteration:07d}_rank{i}.pth"
            for i in range(comm.get_world_size())
        ]
        file = files[comm.get_rank()]
        model = getattr(model, "module", model)  # of DistributedDataParallel
        content = {
            "model": model.state_dict(),
            "optimizer": self.trainer.optimizer.state_dict(),
            "iteration": iteration,
            "batch": [_to_plain(x) for x in self._batch],
            "config": self._cfg.dump(),
        }
        with open_to_replace(file) as stream:
            torch.save(content, stream)
        outputs = get_largest_outputs(model, self._batch)
        _wait_for(files, self._start_time)
        terms = [f"{k} is {v}" for k, v in losses.items() if not math.isfinite(v)]
        values = {k: v for k, v in losses.items() if math.isfinite(v)}
        values["learning rate"] = self.trainer.optimizer.param_groups[0]["lr"]
        shown = ", ".join(f"{k} {v:.4g}" for k, v in values.items())
        what = f"Iteration {iteration}: {' and '.join(terms) or why} ({shown})."
        raise DivergedError(_describe(what, layers, self._batch, outputs, file))

    def find_divergence(self) -> Optional[str]:
        """What is wrong with the model as it is, if anything: it is not finite, or the loss is far above that of the start.

        The model is asked for its logits on the last batch, as at the next step.
        """
        model = getattr(self.trainer.model, "module", self.trainer.model)
        wrong = [
            k
            for k, v in model.state_dict().items()
            if v.is_floating_point() and not v.isfinite().all()
        ]
        if wrong:
            return f"{len(wrong)} tensors are not finite: {shorten(wrong, _MAX_NAMES)}"
        outputs = get_largest_outputs(model, self._batch) if self._batch else {}
        for name, value in outputs.items():
            if not value < _MAX_OUTPUT:
                return f"the training has diverged: the largest {name} on the last batch is {value:.3g}"
        return self._describe_divergence() or None


def find_nonfinite_gradients(model: nn.Module) -> list[str]:
    """Names of the parameters whose gradient is not finite."""
    return [
        name
        for name, x in model.named_parameters()
        if x.grad is not None and not x.grad.isfinite().all()
    ]


@torch.no_grad()
def get_largest_outputs(model: nn.Module, batch: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The largest "|logit|" and "|delta|" of a batch, NaN if one is not finite; nothing for models without `predict`.

    The model is in evaluation mode meanwhile, so that nothing changes and no process waits for another.
    """
    if not hasattr(model, "predict"):
        return {}
    was_training = model.training
    model.eval()
    try:
        _, _, *outputs = model.predict(batch)
        return {
            k: float(torch.stack([x.abs().amax() for x in v]).amax())
            for k, v in zip(("|logit|", "|delta|"), outputs)
        }
    finally:
        model.train(was_training)


def _wait_for(files: Sequence[Path], start_time: float) -> None:
    """Wait until all have been written since a time, but not for ever: other machines may write elsewhere."""
    deadline = time.monotonic() + _WAIT_SECONDS
    while (
        not all(x.is_file() and x.stat().st_mtime >= start_time for x in files)
        and time.monotonic() < deadline
    ):
        time.sleep(0.1)


def _to_plain(item: dict[str, Any]) -> dict[str, Any]:
    """An image of a batch as what `torch.load(weights_only=True)` reads; of its objects, boxes and classes."""
    plain = {k: item[k] for k in _FIELDS if isinstance(item.get(k), (str, int, float))}
    plain["image"] = item["image"].cpu()
    if "instances" in item:
        plain["gt_boxes"], plain["gt_classes"] = (
            item["instances"].gt_boxes.tensor.cpu(),
            item["instances"].gt_classes.cpu(),
        )
    return plain


def from_plain(item: dict[str, Any]) -> dict[str, Any]:
    """The image of a batch again, from what a `nonfinite_step` file has."""
    if "gt_boxes" not in item:
        return item
    instances = Instances(tuple(item["image"].shape[1:]))
    instances.gt_boxes, instances.gt_classes = Boxes(item["gt_boxes"]), item["gt_classes"]
    return {**item, "instances": instances}


def _describe(
    what: str, layers: Sequence[str], batch: Sequence[dict], outputs: dict, file: Path
) -> str:
    """The message of a stop."""
    has_checkpoint = (file.parent / "last_checkpoint").is_file()
    how = (
        "to go on from the last checkpoint: --resume, with"
        if has_checkpoint
        else "there is no checkpoint yet; start again with"
    )
    names = [str(x.get("file_name", x.get("image_id", i))) for i, x in enumerate(batch)]
    nonfinite_images = [name for name, x in zip(names, batch) if not x["image"].isfinite().all()]
    with_boxes = [
        (name, x["instances"].gt_boxes.tensor) for name, x in zip(names, batch) if "instances" in x
    ]
    nonfinite_boxes = [name for name, boxes in with_boxes if not boxes.isfinite().all()]
    lines = [f"{what} The optimizer was not stepped."]
    lines += (
        [f"gradients: {len(layers)} parameters are not finite: {shorten(layers, _MAX_NAMES)}"]
        if layers
        else []
    )
    lines += [f"images: {', '.join(names)}"]
    lines += (
        [f"pixels that are not finite: {', '.join(nonfinite_images)}"] if nonfinite_images else []
    )
    lines += [f"boxes that are not finite: {', '.join(nonfinite_boxes)}"] if nonfinite_boxes else []
    lines += [f"largest {k}, in evaluation mode: {v:.4g}" for k, v in outputs.items()]
    lines += [
        f"kept: {file} has the batch and the state before this step. To see it again: focal-det reproduce {file}",
        f"{how} a lower SOLVER.BASE_LR, a longer warm-up, or SOLVER.CLIP_GRADIENTS",
    ]
    return "\n  ".join(lines)
