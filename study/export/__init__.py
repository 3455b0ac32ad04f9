"""The winner, tested and written as a folder with its model card."""
