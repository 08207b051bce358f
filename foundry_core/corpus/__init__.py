"""From files to documents, with every byte accounted for."""
