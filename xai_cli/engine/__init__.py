"""The one loop: read, choose targets, attribute, draw, write."""
