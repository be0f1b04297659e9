"""Where chunks lie and how to reach them."""
