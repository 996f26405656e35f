"""Side by side with what a user would pick instead. Every script prints ratios, measured in one run."""
