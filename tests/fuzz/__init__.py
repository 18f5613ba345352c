"""Every parser against mutated input: values or refusals of ours, in bounded processor time."""
