"""A tokenizer and a model so small that every figure can be worked out by hand, and random weights for others."""

import torch
from torch import nn

from config import ModelConfig


class Letters:
    """A tokenizer of the letters of an alphabet. Ids: 0 unknown, 1 BOS and EOS, then the letters."""

    name, fingerprint = "letters", "letters"
    unk_id, bos_id, eos_id, pad_id = 0, 1, 1, 1

    def __init__(self, alphabet: str = "abcd"):
        self.alphabet, self.vocab_size = alphabet, 2 + len(alphabet)

    def encode_batch(self, texts, bos=True, eos=False):
        return [[1] * bos + [self._id(letter) for letter in text] + [1] * eos for text in texts]

    def _id(self, letter):
        return self.alphabet.find(letter) + 2 if letter in self.alphabet else 0

    def token_bytes(self, i):
        return ["\ufffd", "", *self.alphabet][i].encode()


class Bigram(nn.Module):
    """Logits that depend on the last token alone: row i of the table follows token i."""

    def __init__(self, table: torch.Tensor, context: int = 8):
        super().__init__()
        self.cfg = ModelConfig(vocab_size=len(table), max_seq_len=context)
        self.table = nn.Parameter(table)

    def features(self, tokens, ctx=None):
        return self.table[tokens]

    def head(self, x):
        return x


def randomised(module: nn.Module, dtype: torch.dtype = torch.float64, std: float = 0.3) -> nn.Module:
    """All parameters random: the zeros that blocks start with would hide errors."""
    for p in module.parameters():
        nn.init.normal_(p, std=std)
    return module.to(dtype).eval()
