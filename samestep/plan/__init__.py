"""WHAT WILL HAPPEN: time, and later memory and cost, from numbers alone."""
