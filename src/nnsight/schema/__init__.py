"""Old addresses of the settings."""
