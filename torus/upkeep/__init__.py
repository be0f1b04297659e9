"""What repairs and moves chunks between disks while nobody asks for them."""
