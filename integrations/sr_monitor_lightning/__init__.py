"""The adapter between sr-monitor and Lightning; its callback arrives with the live monitor."""
