"""AnisoAlign: text corpora in, substitute image embeddings out."""

__version__ = "0.1.0"
