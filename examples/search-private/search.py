"""Find the notes that answer a question by their meaning: a sentence transformer over a hospital's notes.

    python search.py MODEL.safetensors VOCABULARY.txt NOTES.txt QUESTIONS.txt ANSWERS.txt

One note and one question per line.  The transformer (all-MiniLM-L6-v2, a BERT of six layers) is written out in plain
PyTorch.  An ordinary script: it opens files, computes, and writes a file.  It knows nothing of Adyton.
"""

import re
import sys
import unicodedata

import torch
from safetensors import safe_open
from torch.nn import functional

HEADS = 12
LONGEST = 256  # tokens
BEST = 3  # notes per question


class Tokenizer:
    """BERT's uncased word pieces: words in lower case without accents, each cut into the longest known pieces."""

    def __init__(self, path):
        with open(path, encoding="utf-8") as vocabulary:
            self.number = {piece: number for number, piece in enumerate(vocabulary.read().splitlines())}

    def __call__(self, text):
        text = unicodedata.normalize("NFD", text.lower())
        text = "".join(sign for sign in text if unicodedata.category(sign) != "Mn")
        words = re.findall(r"\w+|[^\w\s]", text.replace("_", " _ "))
        pieces = [piece for word in words for piece in self.pieces(word)][: LONGEST - 2]
        return [self.number[piece] for piece in ("[CLS]", *pieces, "[SEP]")]

    def pieces(self, word):
        found, start = [], 0
        while start < len(word):
            for end in range(len(word), start, -1):
                piece = ("##" if start else "") + word[start:end]
                if piece in self.number:
                    break
            else:
                return ["[UNK]"]
            found.append(piece)
            start = end
        return found


class Encoder:
    """A BERT encoder over the tensors of a safetensors file; a text becomes a vector of length one."""

    def __init__(self, path):
        with safe_open(path, "pt") as file:
            self.tensors = {name: file.get_tensor(name) for name in file.keys()}
        self.layers = 1 + max(int(name.split(".")[2]) for name in self.tensors if name.startswith("encoder.layer."))

    def linear(self, name, x):
        return functional.linear(x, self.tensors[name + ".weight"], self.tensors[name + ".bias"])

    def norm(self, name, x):
        return functional.layer_norm(
            x, x.shape[-1:], self.tensors[name + ".weight"], self.tensors[name + ".bias"], eps=1e-12
        )

    def __call__(self, tokens, mask):
        """The vectors (texts, size) of `tokens` (texts, longest); `mask` is true where a token stands."""
        words, places, kinds = (
            self.tensors[f"embeddings.{name}_embeddings.weight"] for name in ("word", "position", "token_type")
        )
        x = self.norm("embeddings.LayerNorm", words[tokens] + places[: tokens.shape[1]] + kinds[0])
        for number in range(self.layers):
            layer = f"encoder.layer.{number}."
            query, key, value = (
                self.linear(f"{layer}attention.self.{name}", x).unflatten(-1, (HEADS, -1)).transpose(1, 2)
                for name in ("query", "key", "value")
            )
            seen = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask[:, None, None])
            seen = self.linear(layer + "attention.output.dense", seen.transpose(1, 2).flatten(-2))
            x = self.norm(layer + "attention.output.LayerNorm", x + seen)
            inner = functional.gelu(self.linear(layer + "intermediate.dense", x))
            x = self.norm(layer + "output.LayerNorm", x + self.linear(layer + "output.dense", inner))
        weight = mask[..., None].float()
        return functional.normalize((x * weight).sum(1) / weight.sum(1), dim=-1)


def embed(encoder, tokenizer, texts):
    rows = [tokenizer(text) for text in texts]
    longest = max(map(len, rows))
    tokens = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
    mask = torch.tensor([[place < len(row) for place in range(longest)] for row in rows])
    with torch.inference_mode():
        return encoder(tokens, mask)


def lines(path):
    with open(path, encoding="utf-8") as text:
        return [line.strip() for line in text if line.strip()]


def main(model, vocabulary, notes, questions, answers):
    encoder, tokenizer = Encoder(model), Tokenizer(vocabulary)
    notes, questions = lines(notes), lines(questions)
    likeness = embed(encoder, tokenizer, questions) @ embed(encoder, tokenizer, notes).T
    with open(answers, "w", encoding="utf-8") as out:
        for question, row in zip(questions, likeness):
            out.write(f"{question}\n")
            for value, index in zip(*row.topk(min(BEST, len(notes)))):
                out.write(f"  {value:.3f}  {notes[index]}\n")


if __name__ == "__main__":
    main(*sys.argv[1:6])
