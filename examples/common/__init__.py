"""What the examples share: options, what is in their folders, and how they end."""
