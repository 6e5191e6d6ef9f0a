"""What to try while the demo runs: commands that need nothing but curl."""

import os

URL_VARIABLE = "BONDSERVE_URL"
"""Where others reach the gateway, if that is not where it listens: a container's published port."""


def next_steps(url: str, model: str) -> str:
    """Commands to copy, for the address under which the gateway is reached from outside."""
    reached = os.environ.get(URL_VARIABLE) or url
    json = "-H 'content-type: application/json'"
    messages = '"messages": [{"role": "user", "content": "Where is my parcel?"}]'
    compared, asked = f"'{{{messages}}}'", f'\'{{"model": "{model}", {messages}}}\''
    return "\n".join(
        [
            "",
            f"bondserve answers on {reached}",
            "(a model of one million parameters, made for this demo: it knows a shop's questions)",
            "",
            "both arms on one question, Best-of-N and distilled:",
            f"  curl -s {reached}/v1/compare {json} -d {compared}",
            "an answer as OpenAI's clients ask for it; the split decides which arm gives it:",
            f"  curl -s {reached}/v1/chat/completions {json} -d {asked}",
            "what the trainer does, the versions it made, and the metrics:",
            f"  curl -s {reached}/v1/training",
            f"  curl -s {reached}/v1/policies",
            f"  curl -s {reached}/metrics",
            "",
        ]
    )
