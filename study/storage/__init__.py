"""Where results are kept: folders and object stores, atomic writes, a study's identity, the log of test openings."""
