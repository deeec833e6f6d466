"""Words of strangers, file names and class names, as text that a terminal cannot take for commands."""

import unicodedata

DIRECTIONS = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}  # characters that reorder what follows


def plain(text: str) -> str:
    """`text` as one line without control characters and without those that reorder what follows."""
    line = " ".join(text.encode(errors="replace").decode().split())
    odd = (unicodedata.category(c) == "Cc" or unicodedata.bidirectional(c) in DIRECTIONS for c in line)
    return "".join("\ufffd" if is_odd else c for c, is_odd in zip(line, odd, strict=True))
