"""The program's files: copied once into private memory, or served through FUSE."""
