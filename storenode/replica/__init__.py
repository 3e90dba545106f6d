"""One partition replica."""
