"""A page to explore photos with, that needs no server and no network."""
