"""Publishing a run on the Hugging Face hub: its revisions, the text about it, and sending both."""
