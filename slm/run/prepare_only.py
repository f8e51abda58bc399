"""prepare=true: the tokenizer and the tokens of a run in the cache. Nothing is trained, no run folder is made."""

import sys
from pathlib import Path

from slm.cache import place
from slm.data.store import TokenStore, tokenizer_identity
from slm.run.config import RunConfig
from slm.run.prepare import TokenizerPlan, lost_text, prepare_stores, tokenizer_of, windows_of
from slm.run.process import is_new
from slm.tables import columns


def prepared(config: RunConfig) -> str:
    """What a run with this configuration reads, as a table: contents, sizes, folders. What is missing is prepared now.

    A GPU is not needed, whatever trainer says: the machine with the network may have none. Raises UserError.
    """
    tokenizer, chosen = tokenizer_of(config), TokenizerPlan.of(config)
    stores = prepare_stores(config, tokenizer)
    splits = windows_of(config, stores, tokenizer)  # refuses a text that is too short
    if (warning := lost_text(config, splits.store, chosen.name)) and is_new(warning):
        print(f"warning: {warning}", file=sys.stderr)
    folder = place(Path(config.cache_dir), "tokenizers", tokenizer_identity(chosen.settings, config.data.corpus))
    rows = [("prepared", "content", "size", "folder")]
    rows.append((f"tokenizer {chosen.name}", f"{tokenizer.vocab_size:,} ids", megabytes(folder), folder))
    for name, store in stores.items():
        rows.append((f"tokens {name}".strip(), content(store), megabytes(store.folder), store.folder))
    return columns(rows, width=1000)


def content(store: TokenStore) -> str:
    return f"{store.tokens('train'):,} train and {store.tokens('validation'):,} validation tokens"


def megabytes(folder: Path) -> str:
    return f"{sum(path.stat().st_size for path in folder.rglob('*') if path.is_file()) / 1e6:,.2f} MB"
