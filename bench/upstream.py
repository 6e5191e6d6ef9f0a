"""nginx with fixed bodies, answering as a vLLM server would: at once, and always the same.

Needs nginx with the echo module (Debian: `nginx-light`, which brings it).
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from processes import Server, free_port, started

MODEL = "served"
PROMPT = list(range(1, 25))
CANDIDATES = (2, 4, 8, 16)
_ECHO = Path("/usr/share/nginx/modules/ngx_http_echo_module.so")
_PIECE = ' Parcels **travel**: "two" days — or\\n three.'


def answer_body(choices: int, tokens: int, *, details: bool) -> dict[str, Any]:
    """A chat completion of four characters a token; `details` are vLLM's ids and logprobs, which
    it sends to whom asks for them."""
    content = (_PIECE * (1 + 4 * tokens // len(_PIECE)))[: 4 * tokens]
    ids = [100 + t % 50 for t in range(tokens)]
    found: list[dict[str, Any]] = []
    for index in range(choices):
        choice: dict[str, Any] = {
            "index": index,
            "message": {"role": "assistant", "content": f"{index}{content}"},
            "finish_reason": "stop",
        }
        if details:
            choice["token_ids"] = ids
            choice["logprobs"] = {
                "content": [
                    {"token": f"t{i}", "logprob": -0.5, "bytes": [116], "top_logprobs": []}
                    for i in ids
                ]
            }
        found.append(choice)
    usage = {"prompt_tokens": len(PROMPT), "completion_tokens": choices * tokens}
    body = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": MODEL,
        "choices": found,
        "usage": usage | {"total_tokens": sum(usage.values())},
    }
    return body | ({"prompt_token_ids": PROMPT} if details else {})


def _scoring_body(tokens: int) -> dict[str, Any]:
    sequence = PROMPT + [100 + t % 50 for t in range(tokens)]
    entries = [None, *({str(token): {"logprob": -0.5}} for token in sequence[1:])]
    return {"choices": [{"index": i, "prompt_logprobs": entries} for i in range(8)]}


@contextmanager
def upstream(core: int, tokens: int, delay_s: float = 0.0) -> Iterator[Server]:
    """The running server; every answer has so many tokens and comes after the delay."""
    if not _ECHO.exists():
        raise SystemExit("nginx with its echo module is needed: apt-get install nginx-light")
    port = free_port()
    with TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        bodies = {
            "plain.json": answer_body(1, tokens, details=False),
            "one.json": answer_body(1, tokens, details=True),
            **{f"n{n}.json": answer_body(n, tokens, details=True) for n in CANDIDATES},
            "scores.json": _scoring_body(tokens),
            "models.json": {
                "data": [{"id": MODEL, "root": "", "max_model_len": 65536, "parent": None}]
            },
            "version.json": {"version": "0.32.0"},
            "tokens.json": {"tokens": PROMPT},
        }
        for file, body in bodies.items():
            (folder / file).write_text(json.dumps(body))
        config = folder / "nginx.conf"
        of_n = "\n    ".join(rf'"~\"n\": ?{n}[,}}]" /n{n}.json;' for n in CANDIDATES)
        sleep = f"echo_sleep {delay_s:.3f};" if delay_s else ""
        config.write_text(
            _CONFIG.format(echo=_ECHO, folder=folder, port=port, of_n=of_n, sleep=sleep)
        )
        command = ["/usr/sbin/nginx", "-p", name, "-c", str(config), "-e", f"{name}/error.log"]
        with started(command, port, core, ready="/health") as server:
            yield server


_CONFIG = """
load_module {echo};
daemon off;
worker_processes 1;
pid {folder}/nginx.pid;
events {{ worker_connections 8192; }}
http {{
  access_log off;
  keepalive_requests 1000000000;
  keepalive_timeout 600s;
  client_body_temp_path {folder}/body;
  client_body_buffer_size 256k;
  open_file_cache max=100;
  default_type application/json;
  map $request_body $chosen {{
    default /plain.json;
    "~return_token_ids" /one.json;
  }}
  map $request_body $of_n {{
    default $chosen;
    {of_n}
  }}
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    root {folder};
    location = /health {{ return 200 ""; }}
    location = /metrics {{ return 200 ""; }}
    location = /version {{ rewrite ^ /version.json last; }}
    location = /v1/models {{ rewrite ^ /models.json last; }}
    location = /tokenize {{ error_page 405 =200 /tokens.json; rewrite ^ /tokens.json break; }}
    location = /v1/completions {{ error_page 405 =200 /scores.json; rewrite ^ /scores.json break; }}
    location = /v1/chat/completions {{ echo_read_request_body; {sleep} echo_exec $of_n; }}
    location ~ \\.json$ {{ error_page 405 =200 $uri; }}
  }}
}}
"""
