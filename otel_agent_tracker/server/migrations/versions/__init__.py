"""The steps by which the tracker's schema came to be."""
