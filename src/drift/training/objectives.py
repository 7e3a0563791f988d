"""What training minimises: one pure function each, of the log-probabilities of the trained tokens.

Every function takes ``logp_T``, log π of T trained tokens, row after row, into which gradients flow, and ``weight_T``,
the weight of each token's reply, shared out over its tokens as ``training.normalization`` says. It returns a sum over
tokens, in nats. Further arguments are keyword-only: ``base_T``, log μ of the token under the policy μ that sampled it,
and ``reply_T``, the number of its reply, are filled by name, the others are settings. Nothing here imports torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from drift.errors import require
from drift.registry import Link, Registry, data_of, is_own, link

if TYPE_CHECKING:
    from torch import Tensor


def nll(logp_T: Tensor, weight_T: Tensor) -> Tensor:
    """``−Σ w log π``, the weighted negative log-likelihood (DRIFT Eq. 15; Refit).

    Leads to ``π ∝ μ w``. Where w < 0 nothing bounds it from below.
    """
    return -(weight_T * logp_T).sum()


def tapered(logp_T: Tensor, weight_T: Tensor, *, base_T: Tensor, reply_T: Tensor) -> Tensor:
    """``nll``, but a reply with w < 0 counts ``sg(min(1, π(y)/μ(y)))`` times (TOPR, arXiv 2503.14286).

    sg is stop-gradient. The push away from a reply ends as it is unlearnt: the gradient is that of ``w π(y)/μ(y)``,
    which is bounded, once π(y) < μ(y). Leads to ``π ∝ μ max(w, 0)``, as if negative weights were not there: what they
    change is how, and what is left of a reply that nothing else pushes away.
    """
    ratio_T = (_reply_sums(logp_T.detach() - base_T, reply_T)).clamp(max=0.0).exp()
    return nll(logp_T, weight_T.where(weight_T >= 0, weight_T * ratio_T))


def importance(logp_T: Tensor, weight_T: Tensor, *, base_T: Tensor, reply_T: Tensor, clip: float = 16.0) -> Tensor:
    """``nll``, but every reply counts ``sg(min(π(y)/μ(y), clip))`` times (iw-SFT, arXiv 2507.12856).

    Below ``clip`` the gradient is that of ``E_π[w]``: with graded weights it leads to the best reply alone, and with
    equal ones it stops as soon as all of π is on them. 16 is the published code's, which takes the mean over a reply's
    tokens where this takes their sum, as in the paper's formula.
    """
    ratio_T = _reply_sums(logp_T.detach() - base_T, reply_T).clamp(max=math.log(clip)).exp()
    return nll(logp_T, weight_T * ratio_T)


def token_probability(logp_T: Tensor, weight_T: Tensor) -> Tensor:
    """``nll``, but every token counts ``sg(π(token))`` times (DFT, arXiv 2508.05629).

    The gradient is that of ``−Σ w π(token)``, which is linear in π: it leads to the token of the largest ``μ w`` alone.
    It needs no log-probabilities of the policy that sampled, and so serves imported logs.
    """
    return nll(logp_T, weight_T * logp_T.detach().exp())


def anchored(logp_T: Tensor, weight_T: Tensor, *, base_T: Tensor, kl: float = 0.1) -> Tensor:
    """``token_probability`` plus ``kl · Σ |w| KL(μ ‖ π)`` (ASFT, arXiv 2509.23753; the KL by ``token_kl``)."""
    return token_probability(logp_T, weight_T) + kl * (weight_T.abs() * token_kl(base_T, logp_T)).sum()


def nll_kl(logp_T: Tensor, weight_T: Tensor, *, base_T: Tensor, kl: float = 0.1) -> Tensor:
    """``nll`` plus ``kl · Σ |w| KL(μ ‖ π)``, the KL by ``token_kl``: it leads less far from the policy that sampled.

    With two possible tokens to ``π = μ (w/w̄ + kl) / (1 + kl)``, w̄ the mean of w ≥ 0 under μ.
    """
    return nll(logp_T, weight_T) + kl * (weight_T.abs() * token_kl(base_T, logp_T)).sum()


def advantage_regression(logp_T: Tensor, weight_T: Tensor, *, base_T: Tensor, reply_T: Tensor) -> Tensor:
    """``Σ_τ (log π(τ)/μ(τ) − log w)²``, which is OAPL's ``(β log π/μ − (R − V̂))²`` over β² (arXiv 2602.19362).

    With DRIFT's weights ``w = e^{R/β}/Ẑ`` and ``V̂ = β log Ẑ`` the advantage R − V̂ is ``β log w``, so no other weights
    are needed. Leads to the same ``p* ∝ μ e^{R/β}`` as DRIFT, at which every conversation has loss 0, also where π is
    not trained on what μ sampled often enough. A weight of 0 has no logarithm: such conversations are not trained.

    ``regression_row`` makes rows ready: ``log w`` is in ``base_T``, ``reply_T`` numbers whole conversations, and the
    ``weight_T`` of a conversation's tokens, which the plan of the steps scales, sum to 1.
    """
    return (weight_T * _reply_sums(logp_T - base_T, reply_T) ** 2).sum()


def token_kl(base_T: Tensor, logp_T: Tensor) -> Tensor:
    """``μ log(μ/π) + (1 − μ) log((1 − μ)/(1 − π))`` of each token: the KL of "this token or another", in nats.

    All that the stored log-probability of one token can tell of ``KL(μ ‖ π)`` at its place: never more than it, by the
    data-processing inequality, whatever picked the token, and exact where there are two tokens. Its gradient with
    respect to the token's logit is ``π − μ``. Ours, where ASFT's code computes a second model.
    """
    # Of a token that is certain the rest is rounding noise, at least so much as float32 shows beside 1.
    log_rest_T, base_rest_T = ((-x_T.expm1()).clamp(min=1e-7).log() for x_T in (logp_T, base_T))
    base_p_T = base_T.exp()
    return base_p_T * (base_T - logp_T) + (1 - base_p_T) * (base_rest_T - log_rest_T)


def _reply_sums(values_T: Tensor, reply_T: Tensor) -> Tensor:
    """``(T,)`` the sum over each token's reply."""
    # There are no more replies than tokens, and to know how many would stop a GPU.
    sums: Tensor = values_T.new_zeros(len(values_T)).index_add(0, reply_T, values_T)[reply_T]
    return sums


_ALL = (nll, tapered, importance, token_probability, anchored, nll_kl, advantage_regression)
REGISTRY = Registry("loss", "drift.losses", {each.__name__: each for each in _ALL})
NLL = Link(name="nll", function=nll, settings={})


def find_loss(loss: str | Mapping[str, Any]) -> Link:
    """The loss of a name or ``module:function``, alone or as ``{name: settings}``.

    Raises:
        ConfigError: an unknown name or setting, with the nearest known one; a setting that is no number above 0; or a
            function that asks for what is not there.
    """
    found = link(loss, REGISTRY, "training.loss")
    strange = sorted({*data_of(found.function)} - {"base_T", "reply_T"})
    require(not strange, f"training.loss.{found.name}", ", ".join(strange), "no arrays but base_T and reply_T")
    for name, value in found.settings.items() if is_own(found.function) else ():
        sound = isinstance(value, int | float) and 0 < value < math.inf
        require(sound, f"training.loss.{found.name}.{name}", value, "a number > 0")
    return found
