"""The card of an exported version: its manifest, as people read it."""

from datetime import UTC, datetime
from typing import Any

from bond_core.adapters import Manifest

_FIGURES = (
    ("reward_mean", "reward", "reward_ci95"),
    ("win_rate_vs_reference", "win rate against the reference", "win_rate_vs_reference_ci95"),
    ("win_rate_vs_best_of_n", "win rate against Best-of-N", "win_rate_vs_best_of_n_ci95"),
    ("quantile_mean", "mean quantile u under the reference", "quantile_ci95"),
    ("n_q", "N_q = u / (1 - u)", None),
    ("kl_nats", "KL to the reference, nats per answer", "kl_ci95"),
    ("n_kl", "N_KL", None),
    ("kl_efficiency", "KL efficiency, N_q / N_KL", None),
    ("judge_mean", "judge", "judge_ci95"),
    ("gold_mean", "gold", "gold_ci95"),
    ("tokens_per_answer", "tokens per answer", None),
)


def model_card(manifest: Manifest, *, merged: bool) -> str:
    """Markdown, with the front matter that model hubs read."""
    made = datetime.fromtimestamp(manifest.created_at, UTC).strftime("%Y-%m-%d %H:%M UTC")
    how = "merged model" if merged else "LoRA adapter"
    load = (
        'AutoModelForCausalLM.from_pretrained("this folder")'
        if merged
        else 'PeftModel.from_pretrained(base, "this folder")'
    )
    facts = [
        ("base", f"{manifest.base_model}, digest `{manifest.base_revision or 'not recorded'}`"),
        ("tokenizer and chat template", f"sha256 `{manifest.tokenizer_sha256}`"),
        ("adapter weights", f"sha256 `{manifest.weights_sha256}`"),
        ("compared with", manifest.parent),
        ("training step", str(manifest.step)),
        ("made", made),
        ("sampling", _listed(manifest.sampling)),
        ("rows and steps", _listed(manifest.log_window)),
    ]
    objective = manifest.objective.get("objective", manifest.objective)
    lines = [
        "---",
        "library_name: " + ("transformers" if merged else "peft"),
        f"base_model: {manifest.base_model}",
        "tags: [bond, best-of-n-distillation]",
        "---",
        f"# {manifest.base_model} {manifest.version}: {how}",
        "",
        "Trained by bondserve to give in one sample what Best-of-N of the base gives.",
        f"Load with `{load}`.",
        "",
        "| | |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in facts),
        "",
        "## Objective",
        "",
        "| setting | value |",
        "|---|---|",
        *(f"| `{key}` | {value} |" for key, value in objective.items()),
        "",
        "## Evaluation",
        "",
        "On held-out prompts, when it was proposed; 95 % intervals over prompts.",
        "",
        "| | | |",
        "|---|---|---|",
        *_evaluation(manifest.evaluation),
        "",
    ]
    return "\n".join(lines)


def _evaluation(found: dict[str, Any]) -> list[str]:
    rows: list[str] = []
    for key, name, interval in _FIGURES:
        value = found.get(key)
        if isinstance(value, int | float):
            bounds = found.get(interval) if interval else None
            shown = f"{bounds[0]:.3f} to {bounds[1]:.3f}" if bounds else ""
            rows.append(f"| {name} | {value:.3f} | {shown} |")
    return rows


def _listed(values: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items()) or "none"
