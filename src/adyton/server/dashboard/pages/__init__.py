"""The pages of the dashboard: what each shows, and what its forms change."""
