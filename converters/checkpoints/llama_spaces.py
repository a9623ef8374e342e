"""The space that a tokenizer of Llama's kind puts before a text."""

from __future__ import annotations

from dataclasses import dataclass

from tokenizers import Tokenizer
from tokenizers.decoders import ByteFallback, Fuse, Replace, Sequence, Strip
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import Metaspace

from converters.checkpoints.fields import Fields

__all__ = ["Spaces"]


@dataclass(frozen=True)
class Spaces:
    """Where transformers 5 puts the space before a text.

    Its LlamaTokenizer goes by the settings alone, whatever a tokenizer.json has; other classes take a tokenizer.json as
    it is, and read `legacy` with another default beside a tokenizer.model.
    """

    llama: bool
    legacy: bool  # a space after each control token too, else at the beginning only
    prefix: bool  # any at all

    @classmethod
    def of(cls, fields: Fields) -> Spaces:
        name = fields.values.get("tokenizer_class")
        name = name.removesuffix("Fast") if isinstance(name, str) else ""
        llama = name == "LlamaTokenizer"
        prefix = name != "GemmaTokenizer" and (not llama or fields.flag("add_prefix_space", True))
        return cls(llama, fields.flag("legacy", not llama), prefix)

    def put_into(self, tokenizer: Tokenizer) -> bool:
        """Whether this changed a tokenizer.json; those of bytes have no such space."""
        text = f"{tokenizer.pre_tokenizer!r} {tokenizer.decoder!r}"
        if not self.llama or "ByteLevel" in text or not isinstance(tokenizer.model, BPE):
            return False
        before = tokenizer.to_str()
        scheme = ("always" if self.legacy else "first") if self.prefix else "never"
        tokenizer.normalizer = None
        tokenizer.pre_tokenizer = Metaspace(replacement="\u2581", prepend_scheme=scheme, split=False)
        first = [Strip(content=" ", left=1)] if self.prefix else []
        tokenizer.decoder = Sequence([Replace("\u2581", " "), ByteFallback(), Fuse(), *first])
        return bool(before != tokenizer.to_str())
