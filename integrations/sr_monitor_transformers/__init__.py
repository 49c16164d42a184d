"""The adapter to the Hugging Face Trainer; its callback arrives with the live monitor."""
