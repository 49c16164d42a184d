"""Where results are shown, and when: pictures over a run, and writers for dashboards."""
