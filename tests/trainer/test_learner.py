"""The learner moves the policy alone, by the objective's gradient, and the anchor after it."""

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from bond_core.config import JBondConfig, KlEstimate, LoraConfig, SamplingConfig, TrainerConfig
from bond_core.errors import AdapterError, ConfigError
from bond_trainer.learner import Learner
from bond_trainer.logprobs import TokenRow, sequence_logprobs, token_logprobs
from bond_trainer.lora import ANCHOR, POLICY, AdapterName, LoraPair, target_modules
from bond_trainer.objectives import RolloutInputs, jbond_loss
from bond_trainer.rollouts import Rollout, RolloutGroup

PROMPT = (3, 40, 41, 42, 1, 4)
ANSWERS = ((50, 51, 52, 1), (60, 61, 1), (70, 71, 72, 73, 1), (80, 1))


def load(path: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)


def learner_of(path: Path, **settings: object) -> Learner:
    torch.manual_seed(0)
    config = TrainerConfig.model_validate(
        {"lora": {"rank": 4, "alpha": 8}, "learning_rate": 0.01, "warmup_steps": 0, **settings}
    )
    return Learner(LoraPair(load(path), config.lora), config, SamplingConfig())


def group(rewards: tuple[float, float, float, float] = (0.5, 1.0, 0.0, 2.0)) -> RolloutGroup:
    rollouts = [Rollout(a, (-2.0,) * len(a), r, "") for a, r in zip(ANSWERS, rewards, strict=True)]
    return RolloutGroup(PROMPT, tuple(rollouts[:1]), tuple(rollouts[1:]))


def sampled_by(learner: Learner) -> RolloutGroup:
    """The group with the log-probability that an engine would report for the policy's sample."""
    with torch.no_grad(), learner.pair.using(POLICY) as model:
        found = token_logprobs(model, [TokenRow(PROMPT, ANSWERS[0])])[0]
    given = group()
    return RolloutGroup(
        PROMPT, (Rollout(ANSWERS[0], tuple(found.tolist()), 0.5, ""),), given.anchor
    )


def test_updates_leave_the_base_unchanged_and_move_the_policy(tiny_policy_path: Path) -> None:
    learner = learner_of(tiny_policy_path)
    before = {k: v.clone() for k, v in load(tiny_policy_path).state_dict().items()}
    for _ in range(3):
        learner.learn_from_rollouts([sampled_by(learner)])
    for name, value in learner.pair.model.get_base_model().state_dict().items():
        if "lora_" not in name:
            assert torch.equal(value, before[name.replace(".base_layer", "")]), name
    assert all(float(b.detach().abs().max()) > 0 for b in learner.pair.factors(POLICY).values())


def test_the_reference_is_the_base_whatever_was_learned(tiny_policy_path: Path) -> None:
    learner = learner_of(tiny_policy_path)
    rows = [TokenRow(PROMPT, answer) for answer in ANSWERS]
    with torch.no_grad():
        expected = sequence_logprobs(load(tiny_policy_path), rows).tolist()
    assert learner.logprobs(POLICY, rows) == pytest.approx(expected, abs=1e-5)
    learner.learn_from_rollouts([sampled_by(learner)])
    assert learner.logprobs(None, rows) == pytest.approx(expected, abs=1e-5)
    assert learner.logprobs(POLICY, rows) != pytest.approx(expected, abs=1e-2)


@pytest.mark.parametrize("freeze_a", [True, False])
def test_the_anchor_is_the_moving_average_of_the_policy(
    tiny_policy_path: Path, freeze_a: bool
) -> None:
    learner = learner_of(
        tiny_policy_path,
        lora={"rank": 4, "alpha": 8, "freeze_a": freeze_a},
        objective={"eta": 0.25},
    )
    name = learner.pair.layer_names[0] + ".B"
    expected = torch.zeros_like(learner.pair.factors(ANCHOR)[name].data)
    for _ in range(3):
        learner.learn_from_rollouts([sampled_by(learner)])
        expected = 0.75 * expected + 0.25 * learner.pair.factors(POLICY)[name].data
    torch.testing.assert_close(learner.pair.factors(ANCHOR)[name].data, expected)
    learner.set_anchor()
    assert torch.equal(
        learner.pair.factors(ANCHOR)[name].data, learner.pair.factors(POLICY)[name].data
    )


def test_with_a_frozen_the_average_of_factors_is_the_average_of_weights(
    tiny_policy_path: Path,
) -> None:
    learner = learner_of(tiny_policy_path, objective={"eta": 0.25})
    base = learner.pair.merged_weights(ANCHOR)
    learner.learn_from_rollouts([sampled_by(learner)])
    policy, anchor = learner.pair.merged_weights(POLICY), learner.pair.merged_weights(ANCHOR)
    for name, weight in anchor.items():
        expected = 0.75 * base[name] + 0.25 * policy[name]
        torch.testing.assert_close(weight, expected, rtol=0, atol=1e-6)


def test_merged_weights_answer_as_the_adapter_does(tiny_policy_path: Path) -> None:
    learner = learner_of(tiny_policy_path)
    learner.learn_from_rollouts([sampled_by(learner)])
    merged = load(tiny_policy_path)
    merged.load_state_dict(learner.pair.merged_weights(POLICY), strict=False)
    ids = torch.tensor([[*PROMPT, *ANSWERS[2]]])
    with torch.no_grad(), learner.pair.using(POLICY) as model:
        torch.testing.assert_close(merged(ids).logits, model(ids).logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kl", ["sequence", "to_go", "exact"])
@pytest.mark.parametrize("micro_batch_tokens", [1, 8192])
def test_the_update_follows_the_objectives_gradient(
    tiny_policy_path: Path, kl: KlEstimate, micro_batch_tokens: int
) -> None:
    """Weights, then micro-batches of backward passes, give what autograd gives in one graph."""
    objective = {"kl": kl, "gamma": 0.5}
    learner = learner_of(
        tiny_policy_path,
        max_grad_norm=1e9,
        objective=objective,
        micro_batch_tokens=micro_batch_tokens,
    )
    learner.learn_from_rollouts([sampled_by(learner)])  # so that A's gradient path is not zero
    given = sampled_by(learner)
    own = [laws(learner, POLICY, answer) for answer in ANSWERS]
    with torch.no_grad():
        anchors = [laws(learner, ANCHOR, answer) for answer in ANSWERS]
    learner.pair.select(POLICY)
    tokens = [chosen(law, answer) for law, answer in zip(own, ANSWERS, strict=True)]
    kls = [kl_per_token(p, q) for p, q in zip(own, anchors, strict=True)]
    later = kls[0].detach().flip(0).cumsum(0).flip(0) - kls[0].detach()
    inputs = RolloutInputs(
        policy_logprobs_BPT=tokens[0].view(1, 1, -1),
        anchor_logprobs_BPT=chosen(anchors[0], ANSWERS[0]).view(1, 1, -1),
        forward_logprobs_BK=torch.stack([t.sum() for t in tokens[1:]]).view(1, 3),
        policy_rewards_BP=torch.tensor([[0.5]]),
        anchor_rewards_BK=torch.tensor([[1.0, 0.0, 2.0]]),
        policy_kl_BP=(kls[0] + later * tokens[0]).sum().view(1, 1),
        anchor_kl_BK=torch.stack(
            [kl_per_token(q, p).sum() for p, q in zip(own[1:], anchors[1:], strict=True)]
        ).view(1, 3),
    )
    factors = list(learner.pair.factors(POLICY).values())
    output = jbond_loss(inputs, JBondConfig.model_validate(objective))
    expected = torch.autograd.grad(output.loss, factors)
    report = learner.learn_from_rollouts([given])
    for factor, gradient in zip(factors, expected, strict=True):
        assert factor.grad is not None
        torch.testing.assert_close(factor.grad, gradient, rtol=1e-3, atol=1e-4)
    assert report.metrics["logprob_mismatch"] < 1e-4
    if kl == "exact":
        assert report.metrics["kl_to_anchor"] == pytest.approx(
            float(kls[0].detach().sum()), abs=1e-4
        )
    if kl == "sequence":
        assert report.metrics["loss"] == pytest.approx(output.metrics["loss"], abs=1e-3)


def laws(learner: Learner, name: AdapterName, answer: tuple[int, ...]) -> Tensor:
    """Log-laws before each token of an answer, (tokens, vocabulary), by one plain forward."""
    with learner.pair.using(name) as model:
        logits = model(torch.tensor([[*PROMPT, *answer]])).logits[0]
    return logits[len(PROMPT) - 1 : -1].log_softmax(-1)


def chosen(law_TV: Tensor, answer: tuple[int, ...]) -> Tensor:
    return law_TV.gather(1, torch.tensor(answer)[:, None])[:, 0]


def kl_per_token(log_p_TV: Tensor, log_q_TV: Tensor) -> Tensor:
    return (log_p_TV.exp() * (log_p_TV - log_q_TV)).sum(-1)


def test_at_the_start_policy_and_anchor_agree(tiny_policy_path: Path) -> None:
    learner = learner_of(tiny_policy_path, objective={"kl": "to_go"})
    report = learner.learn_from_rollouts([sampled_by(learner)])
    assert report.metrics["log_ratio_abs_max"] < 1e-4
    assert report.metrics["penalty_rate"] == pytest.approx(1 / 3)  # 2 of 3 anchors are better


def test_learning_from_a_winner_raises_its_probability(tiny_policy_path: Path) -> None:
    learner = learner_of(tiny_policy_path, winners={"learning_rate": 0.01})
    learner.begin("winners", 10)
    row = TokenRow(PROMPT, ANSWERS[0])
    before = learner.logprobs(POLICY, [row])[0]
    report = learner.learn_from_winners([row])
    assert report.metrics["loss_forward"] == pytest.approx(-before, abs=1e-3)
    assert learner.logprobs(POLICY, [row])[0] > before + 0.1
    assert learner.logprobs(ANCHOR, [row])[0] == pytest.approx(before, abs=1e-5)


def test_the_winners_rate_warms_up_and_decays_and_jbonds_stays(tiny_policy_path: Path) -> None:
    learner = learner_of(
        tiny_policy_path, warmup_steps=1, learning_rate=0.5, winners={"learning_rate": 1.0}
    )
    learner.begin("winners", 4)
    rates: list[float] = []
    for step in range(4):
        learner.phase_step = step
        rates.append(learner.learning_rate())
    assert rates == [0.5, 0.75, 0.5, 0.25]
    learner.begin("rollouts")
    assert learner.learning_rate() == 0.25
    learner.phase_step = 1000
    assert learner.learning_rate() == 0.5


def test_the_rate_of_rollouts_can_decay_to_a_tenth(tiny_policy_path: Path) -> None:
    learner = learner_of(
        tiny_policy_path, warmup_steps=0, learning_rate=1.0, learning_rate_decay_steps=4
    )
    rates: list[float] = []
    for step in (0, 1, 3, 4, 1000):
        learner.rollout_step = step
        rates.append(learner.learning_rate())
    assert rates == [1.0, 0.75, 0.25, 0.1, 0.1]


def test_the_state_round_trips_and_refuses_another_shape(tiny_policy_path: Path) -> None:
    learner = learner_of(tiny_policy_path)
    learner.learn_from_rollouts([sampled_by(learner)])
    again = learner_of(tiny_policy_path)
    again.restore(learner.state())
    for name in (POLICY, ANCHOR):
        for key, value in learner.pair.tensors(name).items():
            assert torch.equal(value, again.pair.tensors(name)[key])
    wider = learner_of(tiny_policy_path, lora={"rank": 8, "alpha": 8})
    with pytest.raises(AdapterError, match=r"was trainer\.lora\.rank changed"):
        wider.restore(learner.state())


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_a_saved_adapter_is_pefts(tiny_policy_path: Path, tmp_path: Path) -> None:
    learner = learner_of(tiny_policy_path)
    learner.learn_from_rollouts([sampled_by(learner)])
    learner.pair.save(POLICY, tmp_path / "saved")
    assert sorted(p.name for p in (tmp_path / "saved").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    loaded = PeftModel.from_pretrained(load(tiny_policy_path), str(tmp_path / "saved"))
    assert loaded.peft_config["default"].base_model_name_or_path == str(tiny_policy_path)
    ids = torch.tensor([[*PROMPT, *ANSWERS[2]]])
    with torch.no_grad(), learner.pair.using(POLICY) as model:
        torch.testing.assert_close(loaded(ids).logits, model(ids).logits, rtol=0, atol=1e-5)


def test_head_and_embeddings_are_never_adapted(tiny_policy_path: Path) -> None:
    model = load(tiny_policy_path)
    names = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
    assert target_modules(model, "all-linear") == names
    for name in ("lm_head", "embed_tokens"):
        with pytest.raises(ConfigError, match="output head or the embeddings"):
            target_modules(model, ["q_proj", name])
    with pytest.raises(ConfigError, match=r"no linear module 'query'; it has down_proj"):
        target_modules(model, ["query"])


def test_truncated_sampling_is_refused(tiny_policy_path: Path) -> None:
    config = TrainerConfig(lora=LoraConfig(rank=4))
    pair = LoraPair(load(tiny_policy_path), config.lora)
    with pytest.raises(ConfigError, match=r"sampling\.top_p is 0\.9"):
        Learner(pair, config, SamplingConfig(top_p=0.9))


def test_the_anchors_log_probabilities_are_at_the_temperature_of_sampling(
    tiny_policy_path: Path,
) -> None:
    """At the start anchor and policy are the base: the log-ratio is zero only if both sides are
    at one temperature."""
    config = TrainerConfig.model_validate(
        {"lora": {"rank": 4, "alpha": 8}, "warmup_steps": 0, "objective": {"kl": "sequence"}}
    )
    sampling = SamplingConfig(temperature=0.5)
    learner = Learner(LoraPair(load(tiny_policy_path), config.lora), config, sampling)
    row = [TokenRow(PROMPT, ANSWERS[0])]
    with torch.no_grad():
        sampled = token_logprobs(load(tiny_policy_path), row, temperature=0.5)[0]
    given = group()
    drawn = Rollout(ANSWERS[0], tuple(sampled.tolist()), 0.5, "")
    report = learner.learn_from_rollouts([RolloutGroup(PROMPT, (drawn,), given.anchor)])
    assert report.metrics["log_ratio_abs_max"] < 1e-4
    assert abs(float(sampled.sum()) - learner.logprobs(None, row)[0]) > 0.1


def test_a_winners_phase_in_between_does_not_restart_the_schedule(tiny_policy_path: Path) -> None:
    learner = learner_of(
        tiny_policy_path, warmup_steps=0, learning_rate=1.0, learning_rate_decay_steps=4
    )
    learner.learn_from_rollouts([sampled_by(learner)])
    learner.begin("winners", 10)
    learner.begin("rollouts")
    assert learner.learning_rate() == 0.75
    other = learner_of(tiny_policy_path, learning_rate_decay_steps=4)
    other.restore(learner.state())
    assert other.rollout_step == 1


def test_nothing_is_said_of_rows_that_were_not_computed(tiny_policy_path: Path) -> None:
    """At beta and gamma 0 the policy's samples have no weight: no KL of 0, no mismatch of 0."""
    settings = {"kl": "exact", "gamma": 0.0}
    learner = learner_of(tiny_policy_path, objective={**settings, "beta": 0.0})
    metrics = learner.learn_from_rollouts([sampled_by(learner)]).metrics
    assert not {"kl_to_anchor", "logprob_mismatch"} & metrics.keys()
    learner = learner_of(tiny_policy_path, objective={**settings, "beta": 0.5})
    metrics = learner.learn_from_rollouts([sampled_by(learner)]).metrics
    assert {"kl_to_anchor", "logprob_mismatch"} <= metrics.keys()
