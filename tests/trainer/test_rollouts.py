"""Rollouts are seeded per prompt and stream, and scored as served."""

from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from bond_core.engines.local import LocalEngine
from bond_core.engines.local.loading import load_policy
from bond_core.errors import ScorerUnavailableError, ScoringError
from bond_core.types import Conversation, Generation, Message, SamplingParams
from bond_trainer.draws import Scorers, UnusablePromptsError, draw_scored
from bond_trainer.rollouts import Draw, RolloutGroup, collect, derived_seed, sample

PROMPTS = [(Message("user", f"where is parcel {number}"),) for number in range(3)]
PARAMS = SamplingParams(max_tokens=12)


class LengthScorer:
    """Scores an answer by its length and its prompt by a thousand times its number."""

    name = identity = "length"

    def __init__(self) -> None:
        self.calls = 0

    async def start(self) -> None:
        """Nothing to open."""

    async def score(
        self, prompts: Sequence[Conversation], completions: Sequence[str]
    ) -> list[float]:
        """One number per pair."""
        self.calls += 1
        return [
            1000.0 * int(prompt[0].content[-1]) + len(text)
            for prompt, text in zip(prompts, completions, strict=True)
        ]

    async def close(self) -> None:
        """Nothing to close."""


@pytest.fixture
async def engine(tiny_policy_path: Path) -> AsyncIterator[LocalEngine]:
    model, tokenizer = load_policy(tiny_policy_path, "float32", "cpu")
    opened = LocalEngine.over(model, tokenizer, max_rows=32, max_context_tokens=128, name="tiny")
    await opened.start()
    opened.publish("policy", {})
    opened.publish("anchor", {})
    yield opened
    await opened.close()


async def test_groups_hold_k_anchor_and_p_policy_samples_with_their_rewards(
    engine: LocalEngine,
) -> None:
    scorer = LengthScorer()
    groups, cost = await collect(
        engine, scorer, PROMPTS, PARAMS, num_policy_samples=2, num_anchor_samples=3, seed=5
    )
    assert [(len(g.policy), len(g.anchor)) for g in groups] == [(2, 3)] * 3
    assert scorer.calls == 1
    for number, group in enumerate(groups):
        for rollout in (*group.policy, *group.anchor):
            assert rollout.reward == 1000 * number + len(rollout.text)
            [logprobs] = await engine.token_logprobs(
                "v0000", group.prompt_token_ids, [rollout.token_ids]
            )
            assert rollout.logprob == pytest.approx(sum(logprobs), abs=1e-3)
    tokens = sum(len(r.token_ids) for g in groups for r in (*g.policy, *g.anchor))
    assert cost.num_tokens == tokens


@pytest.mark.parametrize("k", [2, 4])
async def test_oracle_29_sample_budget(engine: LocalEngine, k: int) -> None:
    """1 + k completions per prompt and step: 3 for the paper's J-BOND, k + 1 for BOND by counts."""
    groups, cost = await collect(
        engine, LengthScorer(), PROMPTS, PARAMS, num_policy_samples=1, num_anchor_samples=k, seed=5
    )
    assert cost.num_samples == (1 + k) * len(PROMPTS)
    assert cost.num_samples == sum(len(g.policy) + len(g.anchor) for g in groups)


async def test_a_step_repeats_from_its_seed_and_differs_from_the_next(engine: LocalEngine) -> None:
    async def texts(seed: int) -> list[str]:
        groups, _ = await collect(
            engine,
            LengthScorer(),
            PROMPTS,
            PARAMS,
            num_policy_samples=1,
            num_anchor_samples=2,
            seed=seed,
        )
        return [r.text for g in groups for r in (*g.policy, *g.anchor)]

    assert await texts(5) == await texts(5)
    assert await texts(5) != await texts(6)


async def test_policy_and_anchor_draw_independently_of_each_other(engine: LocalEngine) -> None:
    """Equal weights under equal seeds must not give equal answers: r_J compares the two."""
    groups, _ = await collect(
        engine,
        LengthScorer(),
        PROMPTS,
        PARAMS,
        num_policy_samples=1,
        num_anchor_samples=2,
        seed=5,
    )
    assert [g.policy[0].text for g in groups] != [g.anchor[0].text for g in groups]


async def test_a_prompts_samples_do_not_depend_on_the_batch(engine: LocalEngine) -> None:
    draw = Draw("v0000", 2, "evaluation")
    [together] = await sample(engine, [draw], PROMPTS, PARAMS, seed=9)
    [alone] = await sample(engine, [draw], PROMPTS[:1], PARAMS, seed=9)
    assert isinstance(together[0], Generation)
    assert isinstance(alone[0], Generation)
    assert [c.token_ids for c in together[0].completions] == [
        c.token_ids for c in alone[0].completions
    ]


async def test_a_failing_scorer_fails_the_batch(engine: LocalEngine) -> None:
    class Broken(LengthScorer):
        async def score(
            self, prompts: Sequence[Conversation], completions: Sequence[str]
        ) -> list[float]:
            raise ScoringError("reward of completion 0 is nan")

    with pytest.raises(ScoringError, match="is nan"):
        await collect(
            engine,
            Broken(),
            PROMPTS,
            PARAMS,
            num_policy_samples=1,
            num_anchor_samples=2,
            seed=0,
        )


def test_derived_seeds_depend_on_every_part() -> None:
    seeds = {derived_seed(1, "a", 2), derived_seed(1, "b", 2), derived_seed(2, "a", 2)}
    assert len(seeds) == 3
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derived_seed(1, "a", 2) == derived_seed(1, "a", 2)


def answers(groups: Sequence[RolloutGroup]) -> list[list[tuple[tuple[int, ...], float]]]:
    """Without the log-probabilities, whose last digits depend on the batch."""
    return [[(r.token_ids, r.reward) for r in (*g.policy, *g.anchor)] for g in groups]


class Picky(LengthScorer):
    """Refuses every batch that holds parcel 1."""

    async def score(
        self, prompts: Sequence[Conversation], completions: Sequence[str]
    ) -> list[float]:
        if any(prompt[0].content.endswith("1") for prompt in prompts):
            raise ScoringError("parcel 1 has no score")
        return await super().score(prompts, completions)


async def test_one_prompt_that_cannot_be_scored_is_left_out(engine: LocalEngine) -> None:
    counts = {"num_policy_samples": 1, "num_anchor_samples": 2, "seed": 5}
    groups, cost = await collect(engine, Picky(), PROMPTS, PARAMS, **counts)
    whole, _ = await collect(engine, LengthScorer(), PROMPTS, PARAMS, **counts)
    assert answers(groups) == answers([whole[0], whole[2]])
    assert cost.left_out == {"scoring_failed": 1}


async def test_a_reward_server_that_is_away_blames_no_prompt(engine: LocalEngine) -> None:
    class Away(LengthScorer):
        """Answers once, then no more."""

        async def score(
            self, prompts: Sequence[Conversation], completions: Sequence[str]
        ) -> list[float]:
            if self.calls:
                raise ScorerUnavailableError("cannot be reached")
            await super().score(prompts, completions)
            raise ScoringError("parcel 1 has no score")

    counts = {"num_policy_samples": 1, "num_anchor_samples": 2, "seed": 5}
    scorer = Away()
    with pytest.raises(ScorerUnavailableError, match="cannot be reached"):
        await collect(engine, scorer, PROMPTS, PARAMS, **counts)  # away in the second look
    with pytest.raises(ScorerUnavailableError, match="cannot be reached"):
        await collect(engine, scorer, PROMPTS, PARAMS, **counts)
    with pytest.raises(ScorerUnavailableError, match="cannot be reached"):
        await draw_scored(engine, "v0000", PROMPTS, PARAMS, 2, 0, Scorers(scorer))
    assert scorer.calls == 1


async def test_a_prompt_that_does_not_fit_is_left_out(engine: LocalEngine) -> None:
    long = (Message("user", "where is parcel " * 200 + "1"),)
    counts = {"num_policy_samples": 1, "num_anchor_samples": 2, "seed": 5}
    prompts = [PROMPTS[0], long, PROMPTS[2]]
    groups, cost = await collect(engine, LengthScorer(), prompts, PARAMS, **counts)
    whole, _ = await collect(engine, LengthScorer(), PROMPTS, PARAMS, **counts)
    assert answers(groups) == answers([whole[0], whole[2]])
    assert cost.left_out == {"too_long": 1}
    nothing, cost = await collect(engine, LengthScorer(), [long], PARAMS, **counts)
    assert nothing == []
    assert cost.left_out == {"too_long": 1}


async def test_an_evaluation_names_the_prompts_it_cannot_use(engine: LocalEngine) -> None:
    long = (Message("user", "where is parcel " * 200 + "0"),)
    for prompts, scorers in (
        ([PROMPTS[0], long], Scorers(LengthScorer())),
        ([PROMPTS[0], PROMPTS[1]], Scorers(Picky())),
        ([PROMPTS[0], PROMPTS[1]], Scorers(LengthScorer(), judge=Picky())),
    ):
        with pytest.raises(UnusablePromptsError) as caught:
            await draw_scored(engine, "v0000", prompts, PARAMS, 2, 0, scorers)
        assert caught.value.prompts == prompts[1:]
    with pytest.raises(ScoringError, match="parcel 1 has no score"):
        await draw_scored(engine, "v0000", PROMPTS[1:2], PARAMS, 2, 0, Scorers(Picky()))


async def test_a_failing_gold_scorer_leaves_a_gap_and_decides_nothing(
    engine: LocalEngine,
) -> None:
    scorers = Scorers(LengthScorer(), gold=Picky())
    draws = await draw_scored(engine, "v0000", PROMPTS[:2], PARAMS, 2, 0, scorers)
    assert draws.gold_PS is None
    assert draws.rewards_PS.shape == (2, 2)


async def test_logged_answers_stand_for_the_anchors_and_only_what_is_missing_is_drawn(
    engine: LocalEngine,
) -> None:
    """Three prompts with 4, 1 and no logged answers, of which 3 anchor samples are wanted."""
    drawn = await engine.generate("v0000", PROMPTS[0], PARAMS, n=4)
    logged = [drawn.completions, drawn.completions[:1], ()]
    groups, cost = await collect(
        engine,
        LengthScorer(),
        PROMPTS,
        PARAMS,
        num_policy_samples=1,
        num_anchor_samples=3,
        seed=5,
        logged=logged,
    )
    assert [len(g.anchor) for g in groups] == [3, 3, 3]
    assert [r.token_ids for r in groups[0].anchor] == [c.token_ids for c in drawn.completions[:3]]
    assert groups[1].anchor[0].token_ids == drawn.completions[0].token_ids
    assert groups[1].anchor[0].reward == 1000 + len(drawn.completions[0].text)  # scored anew
    assert cost.num_samples == (0 + 1) + (2 + 1) + (3 + 1)
    fresh, _ = await collect(
        engine,
        LengthScorer(),
        PROMPTS,
        PARAMS,
        num_policy_samples=1,
        num_anchor_samples=3,
        seed=5,
    )
    assert [g.policy for g in fresh] == [g.policy for g in groups]
