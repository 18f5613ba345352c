"""What a program that was taken over tries."""
