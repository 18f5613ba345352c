"""Loading weights into a GPU."""
