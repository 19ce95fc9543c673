"""How the bot talks through a language model: the endpoint, the conversation, the rounds of one answer. No Discord."""
