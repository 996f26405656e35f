"""What is tried next, and who goes on at a rung: a function of what is known, without Ray."""
