"""WHAT IS TRAINED: models, their loss, the optimizer's arithmetic."""
