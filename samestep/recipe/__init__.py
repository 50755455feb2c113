"""WHAT IS WANTED: the recipe, its types and its reading."""
