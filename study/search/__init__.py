"""What is tried next, who goes on at a rung, and who can be on the front: a function of what is known, without Ray."""
