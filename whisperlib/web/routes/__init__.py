"""One module for each family of pages; each has its blueprint in `routes`."""
