"""vLLM's flags and variables, as values; and the commands as bash runs them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_models import TARGET_MODULES

from bond_cli.failure import CommandError
from bond_cli.service import Deployment, deployment, refuse_untrainable
from bond_cli.target import EngineName, Target, flags_of, read_target
from bond_cli.vllm.interpreter import vllm_python, vllm_python_to_print
from bond_cli.vllm.model_folder import read_model_folder
from bond_cli.vllm.plan import Machine, plan_servers, pointed_at
from bond_cli.vllm.printing import pointing, script
from bond_cli.vllm.settings import Lora, Place, Served, ServerCommand, policy_server, reward_server
from bond_core.config import (
    ClassifierScorerConfig,
    PoolingScorerConfig,
    VllmEngineConfig,
    config_of,
)
from bond_demo import worlds

CPU = Place(
    python="/env/bin/python",
    device="cpu",
    host="127.0.0.1",
    port=8101,
    num_servers=2,
    num_cpus=8,
)
SERVED = Served(
    path=Path("/models/small one"),
    name="small",
    dtype="float32",
    max_model_len=512,
    kv_bytes_per_token=2**15,
)
LORA = Lora(rank=20, max_adapters=4, trained_here=True, modules=("k_proj", "q_proj"))


def on_gpu(**changes: object) -> Place:
    values = {"python": "/env/bin/python", "device": "gpu", "host": "127.0.0.1", "port": 9000}
    return Place(**{**values, **changes})  # type: ignore[arg-type]


def test_the_policys_command_on_a_cpu() -> None:
    server = policy_server(SERVED, LORA, CPU)
    assert server.argv == (
        "/env/bin/python", "-m", "vllm.entrypoints.openai.api_server",
        "--model", "/models/small one",
        "--served-model-name", "small",
        "--host", "127.0.0.1",
        "--port", "8101",
        "--max-model-len", "512",
        "--dtype", "float32",
        "--disable-uvicorn-access-log",
        "--enforce-eager",
        "--block-size", "32",
        "--no-enable-chunked-prefill",
        "--max-num-batched-tokens", "2048",
        "--generation-config", "vllm",
        "--logprobs-mode", "processed_logprobs",
        "--max-logprobs", "-1",
        "--scheduling-policy", "priority",
        "--enable-lora",
        "--max-lora-rank", "32",
        "--max-loras", "9",
        "--max-cpu-loras", "11",
        "--lora-target-modules", "k_proj", "q_proj",
    )  # fmt: skip
    assert server.environ == {
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "VLLM_CPU_KVCACHE_SPACE": "2",  # 128 sequences of 512 tokens at 32 KiB each
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": "4",
    }
    assert all(setting.why for setting in (*server.flags, *server.variables))


def test_a_step_holds_the_longest_prompt() -> None:
    long = Served(path=Path("/m"), name="m", dtype="auto", max_model_len=4096)
    assert flag(policy_server(long, LORA, CPU), "--max-num-batched-tokens") == "4096"


def test_the_reward_models_command_on_a_cpu() -> None:
    server = reward_server("scorer", SERVED, CPU)
    assert server.argv[-5:] == ("--enforce-eager", "--block-size", "32", "--runner", "pooling")
    assert "--enable-lora" not in server.argv
    assert "VLLM_ALLOW_RUNTIME_LORA_UPDATING" not in server.environ


def test_on_a_gpu_the_official_command_is_used_and_memory_is_shared() -> None:
    alone = policy_server(SERVED, LORA, on_gpu())
    assert alone.argv[:3] == ("/env/bin/vllm", "serve", "/models/small one")
    assert "--model" not in alone.argv
    assert not {"--enforce-eager", "--block-size", "--gpu-memory-utilization"} & set(alone.argv)
    assert "--no-enable-chunked-prefill" not in alone.argv
    assert alone.environ["CUDA_VISIBLE_DEVICES"] == "0"
    assert "VLLM_CPU_KVCACHE_SPACE" not in alone.environ
    shared = reward_server("judge", SERVED, on_gpu(servers_on_gpu=2, gpu=1))
    where = shared.argv.index("--gpu-memory-utilization")
    assert shared.argv[where + 1] == "0.40"
    assert shared.environ["CUDA_VISIBLE_DEVICES"] == "1"


@pytest.mark.parametrize(
    ("rank", "allowed"), [(1, 1), (2, 8), (16, 16), (17, 32), (129, 256), (257, 320), (512, 512)]
)
def test_the_rank_is_the_smallest_that_vllm_takes(rank: int, allowed: int) -> None:
    assert Lora(rank=rank, max_adapters=2, trained_here=False).max_lora_rank == allowed


@pytest.mark.parametrize(
    ("trained_here", "reference_adapter", "slots", "resident"),
    [(True, True, 9, 11), (False, True, 6, 6), (True, False, 7, 9), (False, False, 5, 5)],
)
def test_slots_hold_versions_references_the_trainers_two_and_a_spare(
    trained_here: bool, reference_adapter: bool, slots: int, resident: int
) -> None:
    lora = Lora(
        rank=1, max_adapters=4, trained_here=trained_here, reference_adapter=reference_adapter
    )
    assert (lora.slots, lora.resident) == (slots, resident)


def test_a_key_is_in_the_environment_and_not_in_what_is_printed() -> None:
    served = Served(path=Path("/m"), name="m", dtype="auto", max_model_len=None, api_key="s3cret")
    server = reward_server("scorer", served, CPU)
    assert server.environ["VLLM_API_KEY"] == "s3cret"
    assert "s3cret" not in " ".join(server.argv)
    assert "s3cret" not in script([server])
    assert "--max-model-len" not in server.argv


def test_what_is_printed_runs_in_bash_as_the_same_command(tmp_path: Path) -> None:
    """A stand-in for the interpreter prints what it was started with."""
    program = tmp_path / "my python"
    program.write_text(
        f"#!{sys.executable}\nimport json, os, sys\n"
        "print(json.dumps([sys.argv[1:], {k: v for k, v in os.environ.items()}]))\n"
    )
    program.chmod(0o755)
    place = Place(python=str(program), device="cpu", host="127.0.0.1", port=1)
    servers = [policy_server(SERVED, LORA, place), reward_server("scorer", SERVED, place)]
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script(servers)],
        capture_output=True,
        text=True,
        check=True,
    )
    for server, line in zip(servers, done.stdout.splitlines(), strict=True):
        arguments, environ = json.loads(line)
        assert tuple(arguments) == server.argv[1:]
        assert server.environ.items() <= environ.items()


def test_linear_modules_are_read_from_the_weights(tiny_policy_path: Path) -> None:
    folder = read_model_folder(tiny_policy_path)
    assert folder.linear_modules() == sorted(TARGET_MODULES)
    assert folder.context_tokens == 256
    # two layers, one key-value head of 32 channels, keys and values in four bytes
    assert folder.kv_bytes_per_token("float32") == 2 * 2 * 1 * 32 * 4
    assert folder.kv_bytes_per_token("bfloat16") == 2 * 2 * 1 * 32 * 2


def test_the_names_agree_with_those_that_the_trainer_adapts(tiny_policy_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    from bond_trainer.lora import target_modules

    model = AutoModelForCausalLM.from_pretrained(tiny_policy_path, local_files_only=True)
    folder = read_model_folder(tiny_policy_path)
    assert folder.linear_modules() == target_modules(model, "all-linear")


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="is not a model folder"):
        read_model_folder(tmp_path)
    (tmp_path / "config.json").write_text('{"n_positions": 64}')
    folder = read_model_folder(tmp_path)
    assert (folder.context_tokens, folder.kv_bytes_per_token("auto")) == (64, 0)
    with pytest.raises(CommandError, match=r"trainer\.lora\.target_modules"):
        folder.linear_modules()


def machine(**changes: object) -> Machine:
    values = {"python": "/env/bin/python", "device": "cpu", "num_cpus": 4}
    return Machine(**{**values, **changes})  # type: ignore[arg-type]


def flag(server: ServerCommand, name: str) -> str:
    return server.argv[server.argv.index(name) + 1]


def test_the_demo_worlds_servers() -> None:
    config = read_target(Target(engine=EngineName.VLLM))
    policy, scorer, judge = plan_servers(config, machine(first_port=8200))
    assert [server.role for server in (policy, scorer, judge)] == ["policy", "scorer", "judge"]
    assert [server.port for server in (policy, scorer, judge)] == [8200, 8201, 8202]
    assert policy.model == worlds.policy_path()
    assert flag(policy, "--served-model-name") == "demo"
    assert flag(policy, "--max-model-len") == "512"  # the model's own limit, below 2,048
    assert flag(policy, "--max-lora-rank") == "16"
    assert flag(policy, "--max-loras") == "9"
    assert flag(policy, "--dtype") == "float32"
    assert flag(scorer, "--model") == str(worlds.proxy_path())
    assert flag(judge, "--model") == str(worlds.judge_path())
    lines = pointing([policy, scorer])
    assert "engine: {type: vllm, urls: [http://127.0.0.1:8200]}" in lines
    assert f"scorer: {{type: pooling, url: http://127.0.0.1:8201, path: {scorer.model}}}" in lines
    assert "--engine-url http://127.0.0.1:8200 --reward-model http://127.0.0.1:8201" in lines


def test_a_length_can_be_asked_for_and_gpus_are_taken_in_turn() -> None:
    config = read_target(Target())
    on = machine(device="gpu", num_gpus=2, max_model_len=128)
    policy, scorer, judge = plan_servers(config, on)
    assert flag(policy, "--max-model-len") == "128"
    assert len({policy.port, scorer.port, judge.port}) == 3
    gpus = [server.environ["CUDA_VISIBLE_DEVICES"] for server in (policy, scorer, judge)]
    assert gpus == ["0", "1", "0"]
    assert flag(policy, "--gpu-memory-utilization") == "0.40"
    assert "--gpu-memory-utilization" not in scorer.argv


def test_named_modules_and_replicas_for_training_change_the_flags(tiny_policy_path: Path) -> None:
    config = config_of(
        {
            "model": {"path": tiny_policy_path, "name": "tiny"},
            "scorer": {"type": "function", "function": "r:f"},
            "engine": {
                "type": "vllm",
                "training_urls": ["http://t:1"],
                "max_adapters": 3,
                "reference_as": "base",
            },
            "trainer": {"lora": {"rank": 4, "target_modules": ["q_proj", "v_proj"]}},
        }
    )
    [policy] = plan_servers(config, machine())
    assert policy.argv[-3:] == ("--lora-target-modules", "q_proj", "v_proj")
    assert (flag(policy, "--max-lora-rank"), flag(policy, "--max-loras")) == ("8", "4")
    assert flag(policy, "--max-model-len") == "256"


def test_servers_that_were_started_are_in_the_configuration_of_the_children() -> None:
    config = read_target(Target(engine=EngineName.VLLM))
    servers = plan_servers(config, machine(first_port=8200), ("policy", "scorer"))
    pointed = pointed_at(config, servers)
    assert pointed.engine == VllmEngineConfig(urls=("http://127.0.0.1:8200",))
    assert pointed.scorer == PoolingScorerConfig(
        url="http://127.0.0.1:8201", path=worlds.proxy_path()
    )
    assert isinstance(pointed.judge, ClassifierScorerConfig)


def test_nothing_is_started_where_urls_are_named_or_the_engine_is_another() -> None:
    for target in (Target(), Target(engine_url=["http://e:1"])):
        config = read_target(target)
        assert deployment(config, None) == Deployment(config, config)


def test_urls_make_the_engine_vllm() -> None:
    flags = flags_of(Target(engine_url=["http://a:1, http://b:2/v1", "http://c:3"]))
    assert flags == {
        "engine": {"type": "vllm", "urls": ("http://a:1", "http://b:2/v1", "http://c:3")}
    }
    assert flags_of(Target(engine=EngineName.LOCAL)) == {"engine": {"type": "local"}}
    engine = read_target(Target(engine_url=["http://b:2/v1/"])).engine
    assert engine == VllmEngineConfig(urls=("http://b:2",))
    with pytest.raises(CommandError, match="exclude each other"):
        read_target(Target(engine=EngineName.LOCAL, engine_url=["http://a:1"]))


def test_with_urls_the_model_may_be_a_name_and_then_nothing_can_be_trained(
    tmp_path: Path,
) -> None:
    named = Target(model=Path("org/big"), reward_model="http://r:1", engine_url=["http://e:1"])
    config = read_target(named)
    assert (config.model.path, config.model.served_name) == (None, "org/big")
    assert config.engine == VllmEngineConfig(urls=("http://e:1",), model_name="org/big")
    assert config.scorer == PoolingScorerConfig(url="http://r:1")
    with pytest.raises(CommandError, match=r"name its folder, or add --no-train"):
        refuse_untrainable(config)
    with pytest.raises(CommandError, match="no model folder to start a vLLM server with"):
        plan_servers(config, machine())
    folder = read_target(
        Target(model=tmp_path, reward_model="http://r:1", engine_url=["http://e:1"])
    )
    assert folder.model.path == tmp_path
    refuse_untrainable(folder)


def test_the_interpreter_is_the_one_named_or_that_of_make(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CommandError, match=r"make vllm-env.*--vllm-python"):
        vllm_python(None)
    assert vllm_python_to_print(None) == "python"  # what is printed may be for elsewhere
    made = tmp_path / ".venv-vllm/bin/python"
    made.parent.mkdir(parents=True)
    made.symlink_to(sys.executable)
    assert vllm_python(None) == os.fspath(made)
    with pytest.raises(CommandError, match="has no vLLM"):
        vllm_python(Path(sys.executable))
    with pytest.raises(CommandError, match="has no vLLM"):
        vllm_python(tmp_path / "nothing")


def test_the_docs_name_every_flag_and_variable() -> None:
    page = (Path(__file__).parents[2] / "docs/operations.md").read_text()
    served = Served(path=Path("/m"), name="m", dtype="auto", max_model_len=8, api_key="k")
    for place in (CPU, on_gpu(servers_on_gpu=2)):
        for server in (policy_server(served, LORA, place), reward_server("judge", served, place)):
            names = {flag.words[0] for flag in server.flags if flag.words[0].startswith("--")}
            for name in names | set(server.environ):
                assert f"`{name}`" in page
