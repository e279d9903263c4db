"""How much of what a gradient promises a small step keeps: a gradient that misleads makes attacks look weak."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from rrmsdk.attacks.geometry import Images, direction
from rrmsdk.attacks.losses import towards
from rrmsdk.attacks.untouched import own_randomness
from rrmsdk.schema.threat import ThreatModel

# With STEP = 1/4, the share of images of which a step keeps HALF: 1.00 for a natural network on digits (linf:1/10,
# l2:1/2, l1:2) and an adversarially trained one (linf:1/10; 128 images), for a natural resnet14 on CIFAR-10 and for
# hub:resnet14-linf and hub:resnet18-linf (linf:8/255, l2:1/2; 64 images); 0.00 behind rounding of the pixels and behind
# ripples in them (x + 0.01 sin 1000 x, x + 0.05 sin 200 x), 0.13 where the gradient is noise.
STEP = 0.25  # of eps
HALF = 0.5
MOST = 0.5  # least share of images with a gradient that can be followed


def kept(
    model: nn.Module, x: Images, y: Int64[Tensor, " B"], threat: ThreatModel, step: float = STEP
) -> Float[Tensor, " B"]:
    """The rise of f over a step along its gradient, as a share of the rise that the gradient promises.

    (f(x + d) - f(x)) / <grad f(x), d>,    d = step eps direction(grad f(x)), cut to [0, 1]
    f = z_t - z_y, t the likeliest wrong class

    0 where the gradient is zero or not finite. No rescaling of the logits changes it, and the noise of a randomised
    model is the same before and after the step.
    """
    with own_randomness():
        torch.manual_seed(0)
        at = x.detach().clone().requires_grad_()
        with torch.enable_grad():
            z = model(at)
            target = z.detach().scatter(1, y[:, None], -torch.inf).argmax(1)
            f = towards(z, y, target)
            (grad,) = torch.autograd.grad(f.sum(), at)
        d = (x + step * float(threat.eps) * direction(grad, threat)).clamp(0.0, 1.0) - x
        torch.manual_seed(0)
        with torch.no_grad():
            risen = towards(model(x + d), y, target) - f.detach()
    promised = (grad * d).flatten(1).sum(1)
    share = risen / promised
    return torch.where((promised > 0) & share.isfinite(), share, 0.0)


def can_be_followed(model: nn.Module, x: Images, y: Int64[Tensor, " B"], threat: ThreatModel) -> float:
    """The share of images on which a small step along the gradient brings at least half of what it promises."""
    return (kept(model, x, y, threat) >= HALF).float().mean().item()
