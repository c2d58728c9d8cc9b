"""Results of several methods on the same pictures, the house's own or other people's: figures, tables, pages."""
