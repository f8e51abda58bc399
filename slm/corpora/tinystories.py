"""TinyStories (Eldan and Li 2023, arXiv:2305.07759): from the Hugging Face Hub, or a folder with its layout."""

from slm.corpora import digest_of
from slm.corpora.hub import Hub

PUBLISHED = {"roneneldan/TinyStories": (2_119_719, 1_911_420_483)}  # rows and bytes of its train split, by its README


class TinyStories(Hub):
    """The first version, with stories of GPT-3.5 and GPT-4, in its parquet files. Arguments as for `Hub`."""

    def __init__(self, *, path: str | None, streaming: bool, repository: str, revision: str, cache: str):
        super().__init__(
            path=path,
            streaming=streaming,
            repository=repository,
            revision=revision,
            cache=cache,
            name=None,
            files={split: f"data/{split}-*.parquet" for split in ("train", "validation")},
            split="train",
            validation_split="validation",
            validation_share=0.5,
            split_seed=0,
            column="text",
        )

    def size(self) -> tuple[int, int] | None:
        """Train stories and their bytes, as the Hub states them; None for another repository or folder."""
        return PUBLISHED.get(self.repository) if self.source.path is None else None

    def fingerprint(self) -> str:
        return digest_of(self.content())
