"""`bond ask`: one question, one answer."""

from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from bond_cli.asking import (
    DEFAULT_URL,
    ApiKey,
    BestOfAsked,
    MaxTokens,
    Question,
    Seed,
    System,
    Url,
    conversation,
    given,
    plain_model,
)
from bond_cli.failure import explains_failures


@explains_failures
def ask(
    question: Question,
    model: Annotated[
        str | None,
        typer.Option(
            help="Model id, such as NAME:bon, NAME:distilled or NAME:distilled@v0003; by default "
            "the plain name.",
            show_default=False,
        ),
    ] = None,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    system: System = None,
    best_of: BestOfAsked = None,
    max_tokens: MaxTokens = None,
    temperature: Annotated[float | None, typer.Option(show_default=False)] = None,
    seed: Seed = None,
) -> None:
    """Ask a running gateway. The answer goes to stdout, how it was made to stderr."""
    from bond_client import Client

    with Client(url, api_key=api_key) as client:
        answer = client.chat(
            conversation(question, system),
            model=model or plain_model(client),
            **given(best_of=best_of, max_tokens=max_tokens, temperature=temperature, seed=seed),
        )
    typer.echo(answer.text)
    made, score = answer.bond, answer.bond.score
    strategy = f"best of {made.best_of}" if made.strategy == "best_of_n" else "single sample"
    facts = [f"{made.arm} {made.version}, {strategy}"]
    if score is not None:
        facts.append(f"reward {score:.3f}")
    facts.append(f"{answer.usage.completion_tokens} tokens")
    facts += [note for note in (made.degraded, made.note) if note is not None]
    Console(stderr=True).print(Text(" · ".join(facts), style="dim"))
