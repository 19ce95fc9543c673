"""The memory of a chat bot: several stores that act as one."""
