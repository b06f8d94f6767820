"""One module for each emulated API; importing them fills the table of methods."""
