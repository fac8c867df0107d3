"""Old addresses of what captures a block."""
