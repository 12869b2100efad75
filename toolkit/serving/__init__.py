"""A reward model in another process: the server, and the client that is a reward function."""
