"""Where results are kept: folders and object stores, the identity of a study, the book of test looks."""
