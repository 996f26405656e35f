"""Images and their fixed splits. Importing this package imports no torch; ``augment`` does."""

from study.data.dataset import Dataset, Split, content_fingerprint, open_card_data, open_dataset

__all__ = ["Dataset", "Split", "content_fingerprint", "open_card_data", "open_dataset"]
