"""The tables of the store, a module for each: what is read from it and written to it, and how the rows are checked."""
