"""Divergences between two next-token laws, given by log-probabilities over the whole vocabulary.

All take `(tokens, vocabulary)` and return nats per token, `(tokens,)`.
"""

import math

import torch
from torch import Tensor


def kl(log_p_MV: Tensor, log_q_MV: Tensor) -> Tensor:
    """KL(p || q); a token that p never draws adds nothing."""
    weight_MV = log_p_MV.exp()
    return torch.where(weight_MV > 0, weight_MV * (log_p_MV - log_q_MV), 0).sum(dim=-1)


def entropy(log_p_MV: Tensor) -> Tensor:
    """Of p; a token that p never draws adds nothing."""
    weight_MV = log_p_MV.exp()
    return -torch.where(weight_MV > 0, weight_MV * log_p_MV, 0).sum(dim=-1)


def generalised_jsd(log_p_MV: Tensor, log_q_MV: Tensor, beta: float) -> Tensor:
    """beta * KL(p || m) + (1 - beta) * KL(q || m), with m = beta * p + (1 - beta) * q, scaled.

    Agarwal et al. (GKD, arXiv 2306.13649), equation 1; p is the teacher and q the student. The
    plain divergence vanishes at both ends, in the limit like beta * KL(p || q) and
    (1 - beta) * KL(q || p). These limits are what beta 0 and 1 stand for here: KL(p || q) and
    KL(q || p) themselves.
    """
    if beta == 0:
        return kl(log_p_MV, log_q_MV)
    if beta == 1:
        return kl(log_q_MV, log_p_MV)
    log_m_MV = torch.logaddexp(log_p_MV + math.log(beta), log_q_MV + math.log1p(-beta))
    return beta * kl(log_p_MV, log_m_MV) + (1 - beta) * kl(log_q_MV, log_m_MV)
