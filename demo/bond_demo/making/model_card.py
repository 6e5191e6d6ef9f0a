"""The model card, written from the measured figures."""

from typing import Any

_REWARDS = ("proxy", "judge", "gold")

_HEAD = """\
---
license: apache-2.0
language: en
tags: [demo, best-of-n, reward-model, synthetic]
---

# The demo world of bondserve

A synthetic support desk, small enough to be sampled, scored and trained on a laptop without a GPU.
All of it was made by a recipe from a grammar; no text of people or of other models is in it.

| folder | what it is |
|---|---|
| `policy/` | reference policy: Llama, {policy_parameters:,} parameters, with a chat tokenizer |
| `proxy/` | reward model that selects and trains ({reward_parameters:,} parameters) |
| `judge/` | second reward model, for the gate and experiments; training never sees it |
| `prompts/` | `gate.jsonl`, `report.jsonl`: held-out prompts, half with held-out templates |
| `seed_log.jsonl.gz` | a past log: Best-of-8, temperature 1, top-p 1, scored by the proxy |
| `curve.json` | every figure below, and the same for seen and held-out templates apart |

**Intended use**: to see the whole loop work (serve, log, distil, compare) and to test it. The
policy can talk about nothing but its shop. **Licence**: Apache-2.0.

**The documented flaw.** The gold reward is a readable rubric (`bond_demo.rubric`). The proxy
learned from annotators who also go by it, with noise, but who are pleased by a promise that nobody
can keep ("I guarantee you a full refund today.") and by flattery, both of which the rubric marks
down. Such answers are rare in the reference ({flaw_share:.1%}), so that a little selection by the
proxy raises gold and a lot of it lowers gold again. The judge's annotators do not have the flaw.

## Measured

{prompts} report prompts, {samples} samples each at temperature 1; Best-of-n selected by the
proxy, by the unbiased estimator over all subsets; ± is one standard error over prompts.

| | proxy | judge | gold |
|---|---|---|---|
"""

_TAIL = """
| property | value |
|---|---|
| rank correlation of proxy and gold, within a prompt, mean | {within_gold:.3f} |
| the same, all answers pooled | {pooled_gold:.3f} |
| rank correlation of judge and gold, within a prompt, mean | {within_judge:.3f} |
| standard deviation within a prompt: proxy, judge, gold | {spread} |
| pairs with tied proxy scores | {tied:.4%} |
| distinct answers among 16 | {distinct:.2%} |
| tokens per answer, mean and longest | {tokens:.1f}, {longest} |
| proxy of answers with the flaw, without | {proxy_with}, {proxy_without} |
| judge of answers with the flaw, without | {judge_with}, {judge_without} |
| gold of answers with the flaw, without | {gold_with}, {gold_without} |

## Made by

    python -m bond_demo.recipe --out DIR

The recipe is seeded throughout, in about 20 minutes on two cores: the same versions of its
libraries on the same type of processor give the same files; elsewhere rounding differs, and with
it the weights and the figures a little.
"""


def model_card(figures: dict[str, Any], policy_parameters: int, reward_parameters: int) -> str:
    """The card as Markdown, from what `measurements.measure` returned."""
    flaw = figures["flaw"]
    within, spread = (
        figures["rank_correlation_within_prompt"],
        figures["standard_deviation_within_prompt"],
    )
    head = _HEAD.format(
        policy_parameters=policy_parameters,
        reward_parameters=reward_parameters,
        flaw_share=flaw["share_of_answers"],
        prompts=figures["prompts"],
        samples=figures["samples_per_prompt"],
    )
    tail = _TAIL.format(
        within_gold=within["proxy_gold"],
        within_judge=within["judge_gold"],
        pooled_gold=figures["rank_correlation_pooled"]["proxy_gold"],
        spread=", ".join(f"{spread[name]:.2f}" for name in _REWARDS),
        tied=figures["tied_share"]["proxy"],
        distinct=figures["distinct_share_of_16"],
        tokens=figures["mean_answer_tokens"],
        longest=figures["longest_answer_tokens"],
        **{key: "none" if mean is None else f"{mean:.2f}" for key, mean in flaw.items()},
    )
    return head + "".join(map(_curve_row, figures["best_of"].items())) + tail


def _curve_row(entry: tuple[str, dict[str, dict[str, float]]]) -> str:
    n, rewards = entry
    name = "reference" if n == "1" else f"Best-of-{n}"
    cells = (
        f"{rewards[key]['mean']:.3f} ± {rewards[key]['standard_error']:.3f}" for key in _REWARDS
    )
    return f"| {name} | " + " | ".join(cells) + " |\n"
