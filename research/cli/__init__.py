"""What the commands of `research` share: their arguments, and how they end."""
