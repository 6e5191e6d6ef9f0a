"""What a gateway in this language and framework costs at the least: FastAPI takes a body, aiohttp
hands it on, the answer's bytes go back. Nothing is parsed, checked, counted or kept.

    python bench/bare_gateway.py UPSTREAM_URL PORT
"""

import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import aiohttp
import uvicorn
from fastapi import FastAPI, Request, Response


def create_app(upstream: str) -> FastAPI:
    """One route."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            app.state.session = session
            yield

    app = FastAPI(lifespan=lifespan)

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        body = await request.body()
        headers = {"content-type": "application/json"}
        url = f"{upstream}/v1/chat/completions"
        async with request.app.state.session.post(url, data=body, headers=headers) as answer:
            content = await answer.read()
        return Response(content, answer.status, media_type="application/json")

    return app


if __name__ == "__main__":
    uvicorn.run(
        create_app(sys.argv[1]), host="127.0.0.1", port=int(sys.argv[2]), log_level="warning"
    )
