"""The final evaluation: on which prompts, with how many samples."""

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from demo_results import make_snapshot
from rich.console import Console

from bond_core.config import load_config
from bond_core.store import open_store
from bond_demo import conclusion
from bond_demo.report import Report
from bond_demo.sampling import SamplingPlan, draw_fresh_samples
from bond_demo.settings import DemoSettings, demo_config
from bond_demo.worlds import gate_prompts, report_prompts


@pytest.mark.parametrize("best_of", [8, 16, 20])
async def test_it_asks_the_report_half_often_enough_for_best_of_n(
    best_of: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    function = {"type": "function", "function": "bond_demo.settings:gold_rewards"}
    flags = demo_config(tmp_path / "data")
    flags |= {"engine": {"type": "fake"}, "scorer": function, "judge": None}
    flags["arms"] |= {"best_of": best_of}
    config = load_config(flags=flags, environ={})
    asked: list[tuple[list[Any], SamplingPlan]] = []

    async def watched(config: Any, version: str, adapter: Any, prompts: Any, plan: Any, say: Any):
        asked.append((list(prompts), plan))
        return await draw_fresh_samples(config, version, adapter, prompts, plan, say)

    monkeypatch.setattr(conclusion, "draw_fresh_samples", watched)
    settings = DemoSettings(duration_s=1.0, results_dir=tmp_path / "out", evaluation_prompts=18)
    store = await open_store(config.store_url)
    out = Console(file=io.StringIO(), record=True, width=120)
    await conclusion.conclude(
        config, settings, store, replace(make_snapshot(), best_of=best_of), out, promotions=0,
        training_steps=33, seconds_to_first_answer=None, seconds_to_first_promotion=None,
    )  # fmt: skip
    await store.close()
    [(prompts, plan)] = asked
    assert prompts == [prompt.messages for prompt in report_prompts()[:18]]
    assert not {prompt.messages for prompt in gate_prompts()} & set(prompts)
    assert plan.reference_samples == max(16, best_of + 1)
    report = Report.model_validate(json.loads((tmp_path / "out/report.json").read_text()))
    assert report.training_steps == 33
    bon = report.arms["bon"].evaluation
    assert bon.samples == 18 * max(16, best_of + 1)
    assert 0.5 < bon.quantile_mean < 1
    assert "2 of 82 requests failed" in out.export_text()
