"""Recipes: typed configuration."""
