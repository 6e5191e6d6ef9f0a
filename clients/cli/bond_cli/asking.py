"""Options of the commands that talk to a gateway, and which model they ask."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from bond_cli.failure import CommandError

if TYPE_CHECKING:
    from bond_client import Client

DEFAULT_URL = "http://127.0.0.1:8080"
API_KEY_VARIABLE = "BONDSERVE_API_KEY"

Question = Annotated[str, typer.Argument(help="What the user says.")]
Url = Annotated[str, typer.Option(help="URL of the gateway.", envvar="BONDSERVE_URL")]
ApiKey = Annotated[
    str | None,
    typer.Option(help="Key of the gateway.", envvar=API_KEY_VARIABLE, show_envvar=True),
]
System = Annotated[str | None, typer.Option(help="A system message before the question.")]
BestOfAsked = Annotated[int | None, typer.Option(help="N of Best-of-N.", show_default=False)]
MaxTokens = Annotated[int | None, typer.Option(help="Longest answer.", show_default=False)]
Seed = Annotated[int | None, typer.Option(help="Makes the answer repeatable.", show_default=False)]


def conversation(question: str, system: str | None) -> list[dict[str, str]]:
    """The messages of one question."""
    before = [] if system is None else [{"role": "system", "content": system}]
    return [*before, {"role": "user", "content": question}]


def plain_model(client: "Client") -> str:
    """The plain name that the gateway serves, whose requests the configured split decides."""
    models = client.models()
    if not models:
        raise CommandError("the gateway serves no model: start it with `bond up`")
    return models[0].root


def given(**params: object) -> dict[str, Any]:
    """The parameters that are not None."""
    return {name: value for name, value in params.items() if value is not None}
