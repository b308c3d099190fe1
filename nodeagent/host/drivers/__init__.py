"""Drivers of private nodes: who claims a node, brings its memory, and allocates from it as its owner."""
