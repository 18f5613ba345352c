"""From a template to the final manifest: its trusted files, its measurement, its signature."""
