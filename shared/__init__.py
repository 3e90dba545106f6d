"""What router, store node and monitor have in common."""
