"""Networks that a user names, opened, scored and written down: what ``study.evaluate`` does."""
