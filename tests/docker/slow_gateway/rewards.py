"""A reward function for the gateway that is stopped."""


def length(prompts, completions, **kwargs):
    """One number per answer: its length."""
    return [float(len(turns[0]["content"])) for turns in completions]
