"""Certificates: claims about a closed loop, and what is known of them."""
