"""What a co-owner, or whoever else sends files, can try against an owner's machine."""
