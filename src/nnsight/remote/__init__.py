"""Running a block on a server: what is sent, to whom, and what is known of it."""
