"""What will run: from template to final manifest, its trusted files, its measurement, its signature."""
