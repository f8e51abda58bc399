"""prepare=true: the tokenizer and the tokens of a run in the cache. Nothing is trained, no run folder is made."""

import sys
from pathlib import Path

from slm.cache import place
from slm.data.store import TokenStore, tokenizer_identity
from slm.files import json_line
from slm.run.config import RunConfig
from slm.run.prepare import TokenizerPlan, lost_text, prepare_stores, tokenizer_of, windows_of
from slm.run.process import is_new
from slm.tables import columns

Row = dict[str, str | int]


def prepared(config: RunConfig) -> list[Row]:
    """What a run with this configuration reads: its tokenizer and its tokens. What is missing is prepared now.

    A GPU is not needed, whatever trainer says: the machine with the network may have none. Raises UserError.
    """
    tokenizer, chosen = tokenizer_of(config), TokenizerPlan.of(config)
    stores = prepare_stores(config, tokenizer)
    splits = windows_of(config, stores, tokenizer)  # refuses a text that is too short
    if (warning := lost_text(config, splits.store, chosen.name)) and is_new(warning):
        print(f"warning: {warning}", file=sys.stderr)
    folder = place(Path(config.cache_dir), "tokenizers", tokenizer_identity(chosen.settings, config.data.corpus))
    ids = f"{tokenizer.vocab_size:,} ids"
    return [
        row_of(f"tokenizer {chosen.name}", ids, folder),
        *(row_of(f"tokens {name}".strip(), content(store), store.folder) for name, store in stores.items()),
    ]


def row_of(what: str, content: str, folder: Path) -> Row:
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return {"prepared": what, "content": content, "bytes": size, "folder": str(folder)}


def content(store: TokenStore) -> str:
    return f"{store.tokens('train'):,} train and {store.tokens('validation'):,} validation tokens"


def report(rows: list[Row]):
    """Prints the rows as a table, and notes them for print=json."""
    json_line.note(prepared=rows)
    lines = [(row["prepared"], row["content"], f"{row['bytes'] / 1e6:,.2f} MB", row["folder"]) for row in rows]
    print(columns([("prepared", "content", "size", "folder"), *lines], width=1000))
