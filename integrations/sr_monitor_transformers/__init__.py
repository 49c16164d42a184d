"""The adapter between sr-monitor and the Hugging Face Trainer; its callback arrives with the live monitor."""
