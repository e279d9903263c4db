"""Two training steps of each method beside its equation written out plainly, with batch-norm: the loss, every gradient,
and the running statistics, which show which images the student saw in train mode, how often, and in which order.

As in the released codes, where there are any; the notes of each method say where it differs."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import grad

from rrmsdk import data, draws, methods, models
from rrmsdk.methods import Batch
from rrmsdk.models.pair import Pair
from rrmsdk.schema.data import DataSpec
from rrmsdk.schema.threat import ThreatModel

EPS, LR = 0.1, 0.05
CLOSE = {"rtol": 1e-9, "atol": 1e-10}
STEPS = {"inner": {"steps": 3, "rel_step": 0.25}}


def log_p(z):
    return z - torch.logsumexp(z, 1, keepdim=True)


def kl(T, S, tau=1.0):
    """Of each image; the target first."""
    return (log_p(T / tau).exp() * (log_p(T / tau) - log_p(S / tau))).sum(1)


def ce(z, y):
    """Of each image."""
    return -log_p(z)[range(len(y)), y]


def climb(S, loss, b, start, mode, steps=3, step=0.25 * EPS):
    """PGD: from a draw of the sample, sign steps, into the ball, into [0, 1]."""
    was, shape = S.training, tuple(b.x.shape[1:])
    if start == "uniform":
        noise = (2 * draws.uniform(b.seed, b.step, b.ids, shape, draws.ATTACK) - 1) * EPS
    else:
        noise = 0.001 * draws.normal(b.seed, b.step, b.ids, shape, draws.ATTACK)
    x = (b.x + noise).clamp(0, 1)
    S.train(mode == "train")
    for _ in range(steps):
        x = x.detach().requires_grad_()
        x = x.detach() + step * grad(loss(x).sum(), x)[0].sign()
        x = torch.minimum(torch.maximum(x, b.x - EPS), b.x + EPS).clamp(0, 1)
    S.train(was)
    return x


def on_labels(S, b, start="uniform", mode="eval", **steps):
    return climb(S, lambda x: ce(S(x), b.y), b, start, mode, **steps)


def pgd_at(S, T, b):
    return ce(S(on_labels(S, b)), b.y).mean()


def fast_at(S, T, b):
    return ce(S(on_labels(S, b, mode="train", steps=1, step=1.25 * EPS)), b.y).mean()


def trades(S, T, b):
    S.eval()
    at_x = S(b.x).detach()
    x_adv = climb(S, lambda x: kl(at_x, S(x)), b, "gaussian", "eval")
    S.train()
    clean, adv = S(b.x), S(x_adv)
    return (ce(clean, b.y) + 6 * kl(clean, adv)).mean()


def mart(S, T, b):
    x_adv = on_labels(S, b, "gaussian")
    clean, adv = S(b.x), S(x_adv)
    p, p_adv, at = log_p(clean).exp(), log_p(adv).exp(), (range(len(b.y)), b.y)
    wrong = p_adv.masked_fill(F.one_hot(b.y, 10).bool(), 0).amax(1)
    bce = ce(adv, b.y) - (1.0001 - wrong + 1e-12).log()
    return (bce + 5 * kl(clean, adv) * (1.0000001 - p[at])).mean()


def rrm(S, T, b):
    said, g_T = S.features(b.x), T[0].features(b.x).embedding.detach()
    g_S = said.embedding
    cos = (g_S * g_T).sum(1) / (g_S.norm(dim=1) * g_T.norm(dim=1))
    return (5e-3 * ce(said.logits, b.y) + 1 - cos).mean()


def kd(S, T, b):
    said = S(b.x)
    return (0.7 * 16 * kl(T[0](b.x).detach(), said, 4) + 0.3 * ce(said, b.y)).mean()


def mixacm(S, T, b):
    said, told, L_acm = S.features(b.x), T[0].features(b.x), 0
    for a_S, a_T in zip(said.maps, told.maps, strict=True):
        a_S, a_T = (one.flatten(2).max(2).values for one in (a_S, a_T.detach()))
        apart = a_T / a_T.norm(dim=1, keepdim=True) - a_S / a_S.norm(dim=1, keepdim=True)
        L_acm = L_acm + (apart**2).sum(1)
    label = b.share * ce(said.logits, b.y) + (1 - b.share) * ce(said.logits, b.y2)
    return (0.05 * label + 0.95 * 100 * kl(told.logits.detach(), said.logits, 10) + 10 * L_acm).mean()


def ard(S, T, b, alpha, tau):
    x_adv = on_labels(S, b, mode="train")
    adv, clean = S(x_adv), S(b.x)
    return (alpha * tau**2 * kl(T[0](b.x).detach(), adv, tau) + (1 - alpha) * ce(clean, b.y)).mean()


def rslad(S, T, b):
    """But for the entropy of the teacher, which has no gradient."""
    said = T[0](b.x).detach()
    x_adv = climb(S, lambda x: kl(said, S(x)), b, "gaussian", "eval")
    entropy = -(log_p(said).exp() * log_p(said)).sum(1)
    return (5 / 6 * kl(said, S(x_adv)) + 1 / 6 * kl(said, S(b.x)) + entropy).mean()


def mixed_rslad(S, T, b, share):
    """AKD's mixed label in both terms and in the attack, as cross-entropies."""
    hard = torch.eye(10)[b.y]
    label = (share * hard + (1 - share) * log_p(T[0](b.x)).exp()).detach()
    x_adv = climb(S, lambda x: -(label * log_p(S(x))).sum(1), b, "gaussian", "eval")
    return -(label * (0.75 * log_p(S(x_adv)) + 0.25 * log_p(S(b.x)))).sum(1).mean()


def akd(S, T, b):
    x_adv = on_labels(S, b)
    one, two = (log_p(t(x_adv)).exp().detach() for t in T)
    label = 0.75 * (0.25 * one + 0.75 * two) + 0.25 * F.one_hot(b.y, 10)
    return -(label * log_p(S(x_adv))).sum(1).mean()


def trusted(T, x_adv, b):
    return log_p(T(x_adv)).exp()[range(len(b.y)), b.y].detach() ** 0.1


def iad1(S, T, b):
    x_adv = on_labels(S, b, mode="train")
    adv, clean = S(x_adv), S(b.x)
    A = trusted(T[0], x_adv, b)
    return (A * 4 * kl(T[0](b.x).detach(), adv, 2) + (1 - A) * kl(clean, adv)).mean()


def iad2(S, T, b, begun):
    x_adv = on_labels(S, b, mode="train")
    adv = S(x_adv)
    robust, natural = (t(x_adv).detach() for t in T)
    taught = kl(robust, adv)
    if begun:
        A = trusted(T[0], x_adv, b)
        taught = A * taught + (1 - A) * kl(S(b.x), adv)
    return (0.25 * ce(adv, b.y) + 0.5 * taught + 0.25 * kl(natural, adv)).mean()


def where_they_differ(S, T, b):
    return climb(S, lambda x: kl(T[0](x), S(x)), b, "gaussian", "eval")


def adaad(S, T, b, weight, clean_pass=True):
    x_adv = where_they_differ(S, T, b)
    natural = kl(T[0](b.x).detach(), S(b.x)) if clean_pass else 0
    return (weight * kl(T[0](x_adv).detach(), S(x_adv)) + (1 - weight) * natural).mean()


def adaiad(S, T, b):
    x_adv = where_they_differ(S, T, b)
    clean, adv = S(b.x), S(x_adv)
    A = trusted(T[0], x_adv, b)
    return (9 * kl(T[0](x_adv).detach(), adv, 3) + (1 - A) * kl(clean, adv)).mean()


def igdm(S, T, b):
    """On AdaAD; x - d is not clipped."""
    x_adv = where_they_differ(S, T, b)
    d = x_adv - b.x
    base = kl(T[0](x_adv).detach(), S(x_adv))
    change_T = (T[0](b.x + d) - T[0](b.x - d)).detach()
    return (base + 5 * b.progress * kl(change_T, S(b.x + d) - S(b.x - d))).mean()


def awp(S, T, b):
    """As released: a copy climbs by one step of SGD, whose direction is given the length of 0.01 of the weights."""
    x_adv, proxy = on_labels(S, b), copy.deepcopy(S)
    (-ce(proxy(x_adv), b.y).mean()).backward()
    moved = copy.deepcopy(S)
    for weight, climbed in zip(moved.parameters(), proxy.parameters(), strict=True):
        if weight.ndim > 1:
            weight.data -= 0.01 * weight.data.norm() * climbed.grad / climbed.grad.norm()
    loss = ce(moved(x_adv), b.y).mean()
    for own, other in zip(S.buffers(), moved.buffers(), strict=True):
        own.copy_(other)
    # Its gradient is that at the moved weights.
    grads = grad(loss, list(moved.parameters()))
    linear = sum((own * g).sum() for own, g in zip(S.parameters(), grads, strict=True))
    return loss.detach() + linear - linear.detach()


def igam(S, T, b):
    """The discriminator's cross-entropy is a mean over the gradients of both networks."""

    def saliency(z, x, **graph):
        J = grad(log_p(z).exp()[range(len(b.y)), b.y].sum(), x, **graph)[0] / 255
        flat = J.flatten(1) - J.flatten(1).mean(1, keepdim=True)
        return J, (flat / flat.norm(dim=1, keepdim=True)).view_as(J)

    x, D = b.x.clone().requires_grad_(), b.companion
    clean = S(x)
    J_S, shown = saliency(clean, x, create_graph=True)
    J_T, _ = saliency(T[0](x), x)
    both = F.softplus(D(shown)).sum() / (2 * len(b.x))
    return ce(clean, b.y).mean() + 10 * ((J_S - J_T) ** 2).sum() - 2 * both


CASES = {
    "pgd_at": ({"name": "pgd_at", **STEPS}, pgd_at),
    "fast_at": ({"name": "fast_at"}, fast_at),
    "trades": ({"name": "trades", **STEPS}, trades),
    "mart": ({"name": "mart", **STEPS}, mart),
    "rrm": ({"name": "rrm"}, rrm),
    "kd": ({"name": "kd", "alpha": 0.7, "temperature": 4}, kd),
    "mixacm": ({"name": "mixacm", "acm_weight": 10}, mixacm),
    "ard": ({"name": "ard", "alpha": 0.6, "temperature": 3, **STEPS}, partial(ard, alpha=0.6, tau=3)),
    "ard with a clean pass": ({"name": "ard", "clean_pass": True, **STEPS}, partial(ard, alpha=1, tau=30)),
    "rslad": ({"name": "rslad", **STEPS}, rslad),
    "rslad on mixed labels": (
        {"name": "rslad", "label_share": 0.3, "adv_weight": 0.75, **STEPS}, partial(mixed_rslad, share=0.3),
    ),
    "akd": ({"name": "akd", "alpha": 0.75, "beta": [0.25, 0.75], **STEPS}, akd),
    "iad1": ({"name": "iad1", "temperature": 2, **STEPS}, iad1),
    "iad2": ({"name": "iad2", **STEPS}, partial(iad2, begun=True)),
    "iad2 before it begins": ({"name": "iad2", "begin": 0.99, **STEPS}, partial(iad2, begun=False)),
    "adaad": ({"name": "adaad", **STEPS}, partial(adaad, weight=1, clean_pass=False)),
    "adaad with a clean pass": ({"name": "adaad", "clean_pass": True, **STEPS}, partial(adaad, weight=1)),
    "adaad on both": ({"name": "adaad", "adv_weight": 0.7, **STEPS}, partial(adaad, weight=0.7)),
    "adaiad": ({"name": "adaiad", "temperature": 3, **STEPS}, adaiad),
    "igdm": ({"name": "igdm", "base": {"name": "adaad", **STEPS}}, igdm),
    "awp": ({"name": "awp", "base": {"name": "pgd_at", **STEPS}}, awp),
    "igam": ({"name": "igam"}, igam),
}  # fmt: skip


@pytest.fixture(scope="module")
def digits() -> Batch:
    drawn = data.batch(data.load(DataSpec(name="digits")).train, step=0, size=16, seed=0, augment="none")
    return Batch(drawn.x.double(), drawn.y, drawn.ids, ThreatModel(eps="1/10"), progress=0.9)


@pytest.fixture(scope="module")
def pair(digits) -> Pair:
    """Double precision; the teachers have seen some digits, so that their statistics are not those they began with."""
    torch.manual_seed(0)
    student, *teachers = (models.build("cnn", 10, 8, 1, width_mult=0.25).double() for _ in range(3))
    for teacher in teachers:
        for _ in range(20):
            teacher.train()(digits.x)
    return Pair(student.train(), tuple(teachers))


@pytest.mark.parametrize("case", CASES)
def test_a_method_is_its_equation_written_out_with_batch_norm(case, pair, digits):
    fields, reference = CASES[case]
    method, own, plain = methods.parse(fields), copy.deepcopy(pair.student), copy.deepcopy(pair.student)
    companion = methods.companion(method, pair, digits)
    for step in (21, 22):  # no steps of igam's discriminator
        at = replace(digits, step=step, companion=companion.double() if companion else None)
        at = methods.mixed(method, at)
        losses = method.loss(Pair(own, pair.teachers), at), reference(plain, pair.teachers, at)
        torch.testing.assert_close(*losses, **CLOSE)
        for network, loss in zip((own, plain), losses, strict=True):
            grads = grad(loss, list(network.parameters()))
            for weight, slope in zip(network.parameters(), grads, strict=True):
                weight.data -= LR * slope
        torch.testing.assert_close(own.state_dict(), plain.state_dict(), **CLOSE)
