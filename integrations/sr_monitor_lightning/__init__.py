"""The adapter to Lightning; its callback arrives with the live monitor."""
