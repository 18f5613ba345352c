"""What Adyton is installed from, and what it is given out as."""
