"""The tables of the store, with a module for each: reads, writes, and the checks of its rows."""
