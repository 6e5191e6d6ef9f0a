"""The probe: is the policy that answers under a version's name really that version?

An adapter that silently is not served is the costliest failure of continual training: everything
runs, and nothing learned ever reaches a user. So before an alias moves, the engine scores the
manifest's given tokens, and the result has to be nearer to this version than a quarter of its
distance to the nearest other policy it could be mistaken for.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from bond_core.adapters.manifest import Manifest, ProbeCase
from bond_core.engines.base import TokenScorer
from bond_core.errors import ProbeError

NEARNESS = 0.25
"""Largest share of the distance to the nearest other policy that may separate served and said."""


@dataclass(frozen=True, slots=True)
class ProbeReport:
    """Distances are root mean squares over the cases, in nats per answer."""

    version: str
    distance: float
    """Between what is served and what the manifest says of this version."""
    distance_to_nearest: float
    """Between this version and the nearest other policy, by the manifest."""
    nearest: str
    """`parent` or `reference`."""


async def probe_adapter(scorer: TokenScorer, manifest: Manifest, noise_nats: float) -> ProbeReport:
    """Score the probe's tokens under the version that was loaded there, and judge the result.

    `scorer` is an engine or one of its servers, `noise_nats` the engine's numeric noise.
    Raises `ProbeError` if what is served is not this version, or if the version cannot be told
    from its parent or the reference above the engine's numeric noise.
    """
    served: list[float] = []
    for case in manifest.probe:
        [logprobs] = await scorer.token_logprobs(
            manifest.version, case.prompt_token_ids, [case.completion_token_ids]
        )
        served.append(sum(logprobs))
    return judge_probe(manifest.version, manifest.probe, served, noise_nats)


def judge_probe(
    version: str, cases: Sequence[ProbeCase], served: Sequence[float], noise_nats: float
) -> ProbeReport:
    """The decision of `probe_adapter`, from the served log-probabilities. Raises `ProbeError`."""
    if not cases:
        raise ProbeError(f"{version}: the manifest has no probe, so a load cannot be checked")
    if not all(math.isfinite(value) for value in served):
        raise ProbeError(f"{version}: the engine returned log-probabilities that are not finite")
    said = [case.this for case in cases]
    others = {
        "parent": _distance(said, [case.parent for case in cases]),
        "reference": _distance(said, [case.reference for case in cases]),
    }
    nearest = min(others, key=others.__getitem__)
    report = ProbeReport(version, _distance(served, said), others[nearest], nearest)
    if not report.distance_to_nearest * NEARNESS > noise_nats:
        raise ProbeError(
            f"{version} is indistinguishable from its {nearest}: they differ by "
            f"{report.distance_to_nearest:.2g} nats per answer, the engine's numeric noise is "
            f"{noise_nats:.2g}"
        )
    if not report.distance <= NEARNESS * report.distance_to_nearest:
        raise ProbeError(
            f"what is served as {version} is {report.distance:.3g} nats per answer away from it, "
            f"and its {nearest} is {report.distance_to_nearest:.3g} away: the adapter is not what "
            "the engine answers with"
        )
    return report


def _distance(left: Sequence[float], right: Sequence[float]) -> float:
    return math.sqrt(sum((a - b) ** 2 for a, b in zip(left, right, strict=True)) / len(left))
