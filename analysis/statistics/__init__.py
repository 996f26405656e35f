"""What a study's tables say: its front and how sure it is, what moves the objectives, what lambda does."""
