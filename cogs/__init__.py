"""Chat in, chat out: the commands, on discord.py-self and discord.py alike."""
