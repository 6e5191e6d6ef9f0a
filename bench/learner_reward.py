"""The reward of bench/learner.py: dense, continuous, and a function of the text alone."""


def reward(prompts, completions, **kwargs):
    texts = [completion[-1]["content"] for completion in completions]
    return [text.count("e") / (len(text) + 5) + len(text) * 1e-4 for text in texts]
