"""Curves of losses equal the formulas of the paper, and the figure shows them all."""

import xml.etree.ElementTree as ElementTree

import cv2
import numpy as np
import pytest
import torch

from focal_det.experiments.loss_curves import compute_loss_curves
from focal_det.losses import ClsLoss, FocalLoss
from focal_det.registry import CLS_LOSS_REGISTRY
from focal_det.report.loss_curves import MAX_LOSSES, get_label, make_loss_curves_figure

REGISTERED = sorted(name for name, _ in CLS_LOSS_REGISTRY)


def build(name, **args):
    return CLS_LOSS_REGISTRY.build(name, args, num_classes=1)


def compute(name, iou=1.0, **args):
    return compute_loss_curves(build(name, **args), iou=iou)


def check_against(curves, row, loss, grad):
    """Compare one row with float64 values of the loss and its derivative with respect to x_t."""
    np.testing.assert_allclose(curves.loss[row], loss, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(curves.grad[row], grad, rtol=1e-4, atol=1e-7)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


@pytest.mark.parametrize("gamma", [0, 0.5, 1, 2, 5])
@pytest.mark.parametrize("alpha", [-1, 0.25])
def test_focal_loss_equals_equation_5_and_its_derivative(alpha, gamma):
    curves = compute("FocalLoss", alpha=alpha, gamma=gamma)
    x_t = curves.x_t.double().numpy()
    p_t, log_p_t = sigmoid(x_t), -np.logaddexp(0, -x_t)
    assert x_t[0] == -6 and x_t[-1] == 6
    for row, alpha_t in enumerate((alpha, 1 - alpha) if alpha >= 0 else (1, 1)):
        np.testing.assert_allclose(curves.p_t[row], p_t, rtol=1e-4)
        loss = -alpha_t * (1 - p_t) ** gamma * log_p_t
        check_against(
            curves, row, loss, alpha_t * (1 - p_t) ** gamma * (gamma * p_t * log_p_t + p_t - 1)
        )


@pytest.mark.parametrize(("gamma", "beta"), [(2, 1), (4, 0)])
def test_fl_star_equals_appendix_a(gamma, beta):
    curves = compute("FocalStarLoss", alpha=-1, gamma=gamma, beta=beta)
    z = gamma * curves.x_t.double().numpy() + beta
    for row in range(2):
        check_against(curves, row, np.logaddexp(0, -z) / gamma, sigmoid(z) - 1)


def test_gamma_2_downweights_as_section_3_says():
    """100 times less than cross entropy at p_t = 0.9, 1000 times at 0.968.

    Where p_t <= 0.5 it is at most 4 times less.
    """
    ce, fl = (compute("FocalLoss", alpha=-1, gamma=gamma) for gamma in (0, 2))
    p_t, ratio = ce.p_t[0], ce.loss[0] / fl.loss[0]
    at = np.exp(np.interp([0.9, 0.968], p_t, ratio.log()))
    assert at == pytest.approx([100, 1000], rel=0.03)
    assert ratio[p_t <= 0.5].max() <= 4.001


def test_background_logit_is_held_at_zero():
    softmax, binary = (
        compute("SoftmaxFocalLoss", alpha=0.25, gamma=2),
        compute("FocalLoss", alpha=0.25, gamma=2),
    )
    for name in ("p_t", "loss", "grad"):
        torch.testing.assert_close(
            getattr(softmax, name), getattr(binary, name), rtol=1e-4, atol=1e-6
        )


def test_positives_have_the_given_iou():
    curves = compute("VarifocalLoss", iou=0.8)
    x = curves.x_t.double().numpy()
    # q CE(x, q), whose derivative is q (p - q).
    check_against(
        curves,
        0,
        0.8 * (0.8 * np.logaddexp(0, -x) + 0.2 * np.logaddexp(0, x)),
        0.8 * (sigmoid(x) - 0.8),
    )
    torch.testing.assert_close(curves.loss[1], compute("VarifocalLoss", iou=0.3).loss[1])
    assert curves.iou == 0.8 and compute("FocalLoss", iou=0.8).iou is None


@pytest.mark.parametrize(
    ("name", "args", "num_lines"),
    [
        ("FocalLoss", {"alpha": -1}, 1),
        ("FocalLoss", {"alpha": 0.5}, 1),
        ("FocalLoss", {"alpha": 0.25}, 2),
        ("AsymmetricLoss", {"gamma_pos": 2, "gamma_neg": 2, "shift": 0}, 1),
        ("AsymmetricLoss", {"gamma_pos": 2, "gamma_neg": 2, "shift": 0.05}, 2),
    ],
)
def test_equal_costs_of_both_labels_share_a_line(name, args, num_lines):
    curves = compute(name, **args)
    assert len(curves.lines) == num_lines
    figure = make_loss_curves_figure({"a": curves})
    for axes in figure.axes:
        assert [x.get_linestyle() for x in axes.lines] == ["-", "--"][:num_lines]
    assert len(figure.legends[0].get_texts()) == (1 if num_lines == 1 else 3)


def test_lines_of_the_panels_are_the_values():
    curves = compute("FocalLoss", alpha=0.25)
    panels = make_loss_curves_figure({"a": curves}).axes
    for row in range(2):
        got = [axes.lines[row].get_xydata().T for axes in panels]
        p_t, x_t, loss, grad = curves.p_t[row], curves.x_t, curves.loss[row], curves.grad[row]
        for line, (x, y) in zip(got, [(p_t, loss), (p_t, grad.abs()), (x_t, loss), (x_t, grad)]):
            np.testing.assert_allclose(line, torch.stack([x, y]))
    assert "$p_t$" in panels[0].get_xlabel() and "$x_t" in panels[2].get_xlabel()


@pytest.mark.parametrize("name", REGISTERED)
def test_every_registered_loss_has_curves(name):
    curves = compute(name)
    assert (
        curves.loss.isfinite().all() and curves.grad.isfinite().all() and (curves.loss >= 0).all()
    )
    assert (curves.p_t.diff() > 0).all() and curves.p_t.min() > 0 and curves.p_t.max() < 1
    assert (curves.p_t[:, 600] - 0.5).abs().max() < 1e-6 and curves.x_t[600].abs() < 1e-6


@pytest.mark.parametrize("name", [x for x in REGISTERED if CLS_LOSS_REGISTRY.get(x).pointwise])
def test_gradients_are_the_slopes_of_the_lines(name):
    curves = compute(name, iou=0.8)
    slopes = np.gradient(curves.loss.double(), curves.x_t.double(), axis=1)
    # All but the few points beside a kink, where the slope is that of neither side.
    assert np.quantile(np.abs(slopes - curves.grad.numpy()), 0.99) < 2e-3


@pytest.mark.parametrize("name", REGISTERED)
def test_loss_is_not_modified(name):
    loss = build(name)
    before = {key: value.clone() for key, value in loss.state_dict().items()}
    first, second = compute_loss_curves(loss), compute_loss_curves(loss)
    assert all(torch.equal(value, before[key]) for key, value in loss.state_dict().items())
    assert torch.equal(first.loss, second.loss) and torch.equal(first.grad, second.grad)


class HalfLoss(ClsLoss):
    """Half of the logit's distance, as a mean that training changes."""

    self_normalized, stateful, needs = True, True, frozenset({"iou", "anchors"})

    def forward(self, logits, targets):
        assert targets.anchors.shape[1:] == (1, 4) and targets.iou.shape == targets.gt_labels.shape
        return logits[0].abs().sum(dim=(1, 2)) / 2


def get_notes(figure):
    return figure.get_supxlabel()


def test_notes_say_what_values_depend_on():
    figure = make_loss_curves_figure(
        {"FL": compute("FocalLoss"), "half": compute_loss_curves(HalfLoss(), iou=0.7)}
    )
    assert (
        "†" in figure.legends[0].get_texts()[1].get_text()
        and "‡" in figure.legends[0].get_texts()[1].get_text()
    )
    assert figure.legends[0].get_texts()[0].get_text() == "FL"
    notes = get_notes(figure).splitlines()
    assert [x[0] for x in notes] == ["†", "‡", "I"]
    assert (
        "depend on the batch" in notes[0]
        and "grid" in notes[0]
        and "first step" in notes[1]
        and notes[2].endswith("0.7")
    )
    assert get_notes(make_loss_curves_figure({"FL": compute("FocalLoss")})) == ""


def test_twelve_losses_differ_and_thirteen_are_refused():
    curves = {str(i): compute("FocalLoss", alpha=-1, gamma=i / 4) for i in range(MAX_LOSSES + 1)}
    with pytest.raises(ValueError, match="room for 12 losses, got 13"):
        make_loss_curves_figure(curves)
    del curves["12"]
    for axes in make_loss_curves_figure(curves).axes:
        assert len({(x.get_color(), x.get_marker()) for x in axes.lines}) == len(axes.lines) == 12


def test_line_under_another_is_wider():
    figure = make_loss_curves_figure(
        {"under": compute("FocalLoss"), "other": compute("HingeLoss"), "over": compute("FocalLoss")}
    )
    under, _, other, _, over, _ = (x.get_linewidth() for x in figure.axes[0].lines)
    assert under > other == over


def test_labels_have_greek_letters_and_values():
    assert get_label("FocalLoss", {}) == "FocalLoss"
    want = "A \N{GREEK SMALL LETTER GAMMA}=2 \N{GREEK SMALL LETTER ALPHA}=\N{MINUS SIGN}1"
    assert get_label("A", {"gamma": 2, "alpha": -1}) == want
    want = "A \N{GREEK SMALL LETTER GAMMA}_neg=[0.5, 1] shift=0.05"
    assert get_label("A", {"gamma_neg": [0.5, 1], "shift": 0.05}) == want


def test_pictures_are_written_in_the_formats_of_their_suffixes(tmp_path):
    figure = make_loss_curves_figure({"FocalLoss here": compute("FocalLoss")})
    figure.savefig(tmp_path / "a.png")
    figure.savefig(tmp_path / "a.svg")
    picture = cv2.imread(str(tmp_path / "a.png"))
    assert picture.shape[1] == 1800 and len(np.unique(picture.reshape(-1, 3), axis=0)) > 50
    assert ElementTree.parse(tmp_path / "a.svg").getroot().tag.endswith("svg")
    assert "FocalLoss here" in (tmp_path / "a.svg").read_text()


@pytest.mark.parametrize("iou", [-0.1, 1.5, float("nan")])
def test_iou_out_of_range_is_named(iou):
    with pytest.raises(ValueError, match=r"iou must be in \[0, 1\], got"):
        compute("FocalLoss", iou=iou)


def test_loss_for_more_classes_is_refused():
    with pytest.raises(
        ValueError, match="alpha_per_class must have one value for each of the 1 classes, got 2"
    ):
        compute_loss_curves(FocalLoss(alpha_per_class=[0.2, 0.3]))
