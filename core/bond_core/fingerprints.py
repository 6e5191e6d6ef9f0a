"""What a model folder or a file held when it was read, as one digest.

Evidence and tensors outlive the process that made them; their digests say whether what they were
made from is still there. Reads files alone, no torch.
"""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

WHOLE_BYTES = 1 << 30
"""Files up to this size are read whole; sha256 takes a second or two for the largest."""
_END_BYTES = 1 << 20
_MODEL_FILES = ("config.json", "*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin*")
_TOKENIZER_FILES = (
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "chat_template*", "vocab*",
    "merges.txt",
)  # fmt: skip


def file_digest(file: Path) -> str:
    """sha256 of a file's content, in hexadecimal.

    Of a file over `WHOLE_BYTES`, whose reading would delay every start, it is the sha256 of size,
    time of change (ns), first and last MiB: equal contents that were written twice then differ.
    """
    with file.open("rb") as stream:
        stat = file.stat()
        if stat.st_size <= WHOLE_BYTES:
            return hashlib.file_digest(stream, "sha256").hexdigest()
        digest = hashlib.sha256(f"{stat.st_size} {stat.st_mtime_ns} ".encode())
        digest.update(stream.read(_END_BYTES))
        stream.seek(-_END_BYTES, 2)
        digest.update(stream.read())
        return digest.hexdigest()


def model_digest(folder: Path) -> str:
    """sha256 over a model folder's configuration and weights, their names and contents.

    The tokenizer, generation settings and model card do not count: they change no weight.
    """
    return _folder_digest(folder, _MODEL_FILES)


def model_and_tokenizer_digest(folder: Path) -> str:
    """sha256 over configuration, weights, tokenizer and chat template of a model folder."""
    return _folder_digest(folder, (*_MODEL_FILES, *_TOKENIZER_FILES))


def files_digest(files: Iterable[Path]) -> str:
    """sha256 over the contents of files, whatever they are called and in whatever order."""
    return _combined(sorted({file_digest(file) for file in files}))


def _folder_digest(folder: Path, patterns: Iterable[str]) -> str:
    files = {file for pattern in patterns for file in folder.glob(pattern) if file.is_file()}
    return _combined([[file.name, file_digest(file)] for file in sorted(files)])


def _combined(parts: object) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
