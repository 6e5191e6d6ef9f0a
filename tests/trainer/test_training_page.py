"""The example of the documentation, run as it stands."""

import json
import re
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parents[2] / "docs" / "training.md"


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_the_example_of_the_page_runs(
    tiny_policy_path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    [block] = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), flags=re.MULTILINE | re.DOTALL)
    shorter = block.replace("max_steps=200", "max_steps=1")
    assert shorter != block
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my-model").symlink_to(tiny_policy_path)
    rows = [json.dumps({"prompt": f"question {number}"}) for number in range(600)]
    (tmp_path / "prompts.jsonl").write_text("\n".join(rows))
    scope: dict[str, object] = {"__name__": "example"}
    exec(compile(shorter, str(PAGE), "exec"), scope)
    adapter, reward, kl = capsys.readouterr().out.split()
    assert adapter == "run/adapters/v0001"
    assert (tmp_path / adapter / "adapter_model.safetensors").is_file()
    assert float(reward) < 0  # minus the distance from 80 characters
    assert float(kl) > 0
