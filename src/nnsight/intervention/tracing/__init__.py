"""Old addresses of what captures and runs blocks."""
