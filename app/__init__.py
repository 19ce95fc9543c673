"""What runs the bot: settings, logs, the client of either library, and the supervisor around it."""
