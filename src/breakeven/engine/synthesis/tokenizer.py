"""A byte-level tokenizer that encodes any text, padded to a model's vocabulary.

Token i < 256 stands for one byte in GPT-2's printable alphabet. The rest of the vocabulary are words no text encodes
to, but which a synthetic model generates: each decodes to visible text, so every generated token reaches the client.
"""

from __future__ import annotations

from breakeven.errors import UserError

N_SPECIAL = 3
BOS, EOS, PAD = 256, 257, 258
NORMAL, CONTROL = 1, 3
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def byte_alphabet() -> list[str]:
    """GPT-2's printable stand-in for each byte value, in order."""
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    alphabet, next_free = [], 256
    for value in range(256):
        if value in printable:
            alphabet.append(chr(value))
        else:
            alphabet.append(chr(next_free))
            next_free += 1
    return alphabet


def tokens_of(vocab: int) -> tuple[list[str], list[int]]:
    """The `vocab` tokens and their types. Raises UserError when the vocabulary cannot hold the byte alphabet."""
    if vocab < 256 + N_SPECIAL:
        raise UserError(f"a vocabulary of {vocab} cannot be synthesised: give at least {256 + N_SPECIAL} tokens")
    words = [f"\u0120w{i}" for i in range(vocab - 256 - N_SPECIAL)]
    tokens = [*byte_alphabet(), "<|bos|>", "<|eos|>", "<|pad|>", *words]
    return tokens, [NORMAL] * 256 + [CONTROL] * N_SPECIAL + [NORMAL] * len(words)
