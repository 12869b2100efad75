"""A judge that thinks: a language model that writes a thought and then says how good a response is."""
